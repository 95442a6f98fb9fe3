"""Every request has an id: the client's own if that is a decent one, else a fresh one. It is no completion's id.

Promises: the id is on the answer, whatever the answer is, and in every log line of the request; when the app fails
before it has answered, this answers. It knows no route and no body.
"""

import re
import uuid
from collections.abc import Iterable
from typing import Any

import attrs
import orjson
import structlog
from structlog.contextvars import bound_contextvars

from hydra.http.failures import error_body

HEADER = b"x-request-id"
DECENT = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

log = structlog.get_logger()


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """What the client calls its request. Several names, or a strange one, are none: the answer must not carry it."""
    given = [value for name, value in headers if name.lower() == HEADER]
    if len(given) == 1 and DECENT.fullmatch(given[0]):
        return given[0]
    return b"req-" + uuid.uuid4().hex.encode()


@attrs.frozen
class RequestId:
    """An ASGI application around another one."""

    app: Any

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(scope["headers"])
        started = False

        async def send_with_id(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message["headers"], (HEADER, request_id)]}
            await send(message)

        with bound_contextvars(request_id=request_id.decode()):
            try:
                await self.app(scope, receive, send_with_id)
            except Exception:
                log.exception("a request failed outside of its route")
                if started:
                    raise  # the server cuts the connection: half an answer must not look like a whole one
                await _answer_failure(send_with_id)


async def _answer_failure(send: Any) -> None:
    body = orjson.dumps(error_body("internal error", "server_error", None, "internal_error"))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
