"""No answer before the request's body: what is left of it is received first, or the connection is closed in good order.

An answer that overtakes the body (404, 405, 413, 415, ...) would leave the rest of the body in the connection, and
whoever still sends it would find the connection reset instead of the answer. So the first part of an answer waits for
the body, as long as it is bounded in size and time. Beyond that the answer says that the connection ends with it, and
the connection swallows the rest (ClientStream). It keeps nothing of the body.
"""

from collections.abc import Iterable
from typing import Any

import attrs
import trio

from hydra.http.client_stream import CLIENT_STREAM

WAIT_S = 5.0
BEYOND = 2  # a body up to so many times the limit is taken in and dropped; a larger one costs the connection


@attrs.define(eq=False)
class _Incoming:
    """How much of a body has come."""

    receive: Any
    bytes_max: int
    received_bytes: int = 0
    complete: bool = False
    asked: int = 0  # calls of `next` under way
    settled: trio.Event = attrs.field(factory=trio.Event)  # complete, too large, or the client has gone

    def expect(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        for name, value in headers:
            if name.lower() == b"content-length" and value.isdigit() and int(value) > self.bytes_max:
                self.settled.set()

    async def next(self) -> Any:
        self.asked += 1
        try:
            message = await self.receive()
        finally:
            self.asked -= 1
        if message["type"] == "http.request":
            self.received_bytes += len(message.get("body", b""))
            self.complete = self.complete or not message.get("more_body", False)  # two may ask at the same time
        if message["type"] != "http.request" or self.complete or self.received_bytes > self.bytes_max:
            self.settled.set()
        return message

    async def settle(self) -> None:
        """Within WAIT_S. An app that no longer receives will not miss what is dropped here."""
        with trio.move_on_after(WAIT_S):
            while not self.settled.is_set():
                if self.asked:
                    await self.settled.wait()
                else:
                    await self.next()


@attrs.frozen
class RequestBody:
    """An ASGI application around another one, which takes bodies of up to `bytes_max`."""

    app: Any
    bytes_max: int

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["http_version"] not in ("1.0", "1.1"):
            await self.app(scope, receive, send)  # HTTP/2 has a stream for each request
            return
        incoming = _Incoming(receive, BEYOND * self.bytes_max)
        incoming.expect(scope["headers"])

        async def send_after_body(message: Any) -> None:
            if message["type"] == "http.response.start":
                await incoming.settle()
                if not incoming.complete:
                    message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
                    stream = scope.get("state", {}).get(CLIENT_STREAM)
                    if stream is not None:
                        stream.linger()
            await send(message)

        await self.app(scope, incoming.next, send_after_body)
