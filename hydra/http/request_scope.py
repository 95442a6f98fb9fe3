"""Every request has a nursery of its own, open exactly as long as the request.

A handler that opened a nursery and left it inside its response body would tie a task's scopes into a knot. So the
nursery is opened around the whole request, outside the framework, and whatever runs for a request is started in it:
when the answer is out, or the client has gone, all of it ends.
"""

from contextvars import ContextVar
from typing import Any

import attrs
import trio

_nursery: ContextVar[trio.Nursery] = ContextVar("request_nursery")


def request_nursery() -> trio.Nursery:
    """Of the request that is being handled. Raises LookupError outside of one."""
    return _nursery.get()


@attrs.frozen
class RequestScope:
    """An ASGI application around another one."""

    app: Any

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        async with trio.open_nursery() as nursery:
            _nursery.set(nursery)
            await self.app(scope, receive, send)
            nursery.cancel_scope.cancel()
