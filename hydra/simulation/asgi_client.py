"""A client that speaks ASGI to an app in the same loop: no socket, so it works under virtual time too."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

Headers = Sequence[tuple[bytes, bytes]]


@attrs.define(eq=False)
class Exchange:
    """One request and what has come back so far."""

    status: int | None = None
    headers: dict[str, str] = attrs.field(factory=dict)
    body: bytes = b""
    ended: bool = False
    _news: trio.Event = attrs.field(factory=trio.Event)
    _gone: trio.Event = attrs.field(factory=trio.Event)

    def leave(self) -> None:
        """The client closes its connection."""
        self._gone.set()

    async def until(self, holds: Any) -> None:
        while not holds(self):
            assert not self.ended, f"it ended without that: {self.status} {self.body!r:.500}"
            await self._news.wait()

    async def end(self) -> None:
        while not self.ended:
            await self._news.wait()

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The SSE events so far; "[DONE]" as it is."""
        lines = [line[6:] for line in self.body.decode().split("\n\n") if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    def tell(self) -> None:
        self._news.set()
        self._news = trio.Event()


@asynccontextmanager
async def exchange(
    app: Any, method: str, path: str, body: Any = None, headers: Headers = (), *, body_ends: bool = True
) -> AsyncIterator[Exchange]:
    """`body` is sent as JSON unless it is bytes; a content type or length in `headers` stands for the usual one.

    Without `body_ends` more of it is still to come, and never does. Leaving the block closes the connection.
    """
    opened = Exchange()
    route, _, query = path.partition("?")
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    incoming: list[dict[str, Any]] = [{"type": "http.request", "body": content, "more_body": not body_ends}]
    usual = {b"host": b"localhost", b"content-type": b"application/json", b"content-length": b"%d" % len(content)}
    named = {name for name, _ in headers}
    all_headers = [*((name, value) for name, value in usual.items() if name not in named), *headers]
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": route, "raw_path": route.encode(), "query_string": query.encode(), "root_path": "",
        "headers": all_headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "extensions": {},
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        if incoming:
            return incoming.pop(0)
        await opened._gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            opened.status = message["status"]
            opened.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
        else:
            opened.body += message.get("body", b"")
            opened.ended = not message.get("more_body", False)
        opened.tell()

    async def run() -> None:
        await app(scope, receive, send)
        opened.ended = True
        opened.tell()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield opened
        opened.leave()
        with trio.fail_after(10):
            await opened.end()


async def ask(app: Any, method: str, path: str, body: Any = None, headers: Headers = ()) -> Exchange:
    """The whole answer."""
    async with exchange(app, method, path, body, headers) as opened:
        await opened.end()
    return opened
