"""What a client sees of a streamed answer, as (token ids, finish reason) pieces, or as the refusal it was told."""

import json
import tempfile
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

from hydra.protocol.refusal import RefusalCode, refuse
from hydra.simulation.asgi_client import Exchange
from hydra.store.models.demo_model import ensure_demo_model


@cache
def words_directory() -> str:
    """A tokenizer for the pocket model: at one fixed place, since paths are part of a trace."""
    return str(ensure_demo_model(Path(tempfile.gettempdir()) / "hydra-simulated-words"))


async def read_stream(answer: Exchange) -> AsyncIterator[tuple[tuple[int, ...], str | None]]:
    """Raises RefusalError as told; AssertionError when the stream breaks a rule of its own."""
    await answer.until(lambda seen: seen.status is not None)
    if answer.status != 200:
        await answer.end()
        raise _told(answer.json(), answer.headers.get("retry-after"))
    at, done = 0, False
    while True:
        events = answer.body[at:].split(b"\n\n")
        for event in events[:-1]:
            at += len(event) + 2
            if event.startswith(b":"):
                continue
            assert not done, "something was said after the end"
            if event == b"data: [DONE]":
                done = True
                continue
            chunk = json.loads(event.removeprefix(b"data: "))
            if "error" in chunk:
                raise _told(chunk, None)
            choice = chunk["choices"][0]
            yield tuple(choice["token_ids"]), choice["finish_reason"]
        if answer.ended:
            assert done, f"the stream was cut: {answer.body[-200:]!r}"
            return
        seen = len(answer.body)
        await answer.until(lambda now, seen=seen: len(now.body) > seen or now.ended)


def _told(chunk: dict[str, Any], retry_after: str | None) -> Exception:
    error = chunk["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] in get_args(RefusalCode), error
    return refuse(error["code"], error["message"], retry_after_s=float(retry_after) if retry_after else None)
