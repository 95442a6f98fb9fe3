"""A reader over HTTP: one streamed completion, id by id, until it ends or until the reader closes the connection."""

import json
from collections.abc import AsyncIterator
from typing import Any

import attrs
import httpx2
import trio

SILENCE_MAX_S = 120.0


@attrs.define(eq=False)
class RealReader:
    """See `Reader`. `run` reads; everything else looks at what has been read."""

    name: str
    prompt: tuple[int, ...]
    max_tokens: int
    client: httpx2.AsyncClient
    model_id: str
    tokens: list[int] = attrs.field(factory=list, init=False)
    finish: str | None = attrs.field(default=None, init=False)
    error: str | None = attrs.field(default=None, init=False)
    over: bool = attrs.field(default=False, init=False)
    _news: trio.Event = attrs.field(factory=trio.Event, init=False)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)

    async def until(self, n_tokens: int) -> None:
        while len(self.tokens) < n_tokens and not self.over:
            await self._news.wait()

    async def finished(self) -> None:
        while not self.over:
            await self._news.wait()

    def leave(self) -> None:
        self._scope.cancel()

    async def run(self) -> None:
        """Never raises for what the cluster does; that is in `error`."""
        with self._scope:
            try:
                async for event in self._events():
                    self._take(event)
            except httpx2.HTTPError as error:
                self.error = f"connection lost: {error!r}"
        self.over = True
        self._tell()

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        body = {
            "model": self.model_id, "prompt": list(self.prompt), "max_tokens": self.max_tokens, "temperature": 0,
            "ignore_eos": True, "return_token_ids": True, "stream": True,
        }  # fmt: skip
        async with self.client.stream("POST", "/v1/completions", json=body, timeout=SILENCE_MAX_S) as answer:
            if answer.status_code != 200:
                yield json.loads(await answer.aread())
                return
            done = False
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    done = True
                elif line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))
            if not done and self.error is None:
                self.error = "cut short"

    def _take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.error = str(event["error"]["code"])
            return
        choice = event["choices"][0]
        self.tokens += choice["token_ids"]
        self.finish = choice["finish_reason"]
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()
