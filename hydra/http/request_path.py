"""The path of a request as routes know it: each slash once, none at the end. A redirect would lose the body of a POST.

Clients glue a base URL with a slash at its end to a path with one at its start, or end a path with one. None of our
routes means anything by that.
"""

from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import attrs

SHOWN_MAX = 200


def plain_path(path: str) -> str:
    """Of a target in the form that proxies use (http://host/path), its path."""
    if not path.startswith("/"):
        with suppress(ValueError):  # no URL either: no route has this path
            path = urlsplit(path).path
    return "/" + "/".join(part for part in path.split("/") if part)


def shown_path(raw_path: bytes) -> str:
    """As the client wrote it, for a message: visible ASCII, and never endless."""
    text = "".join(chr(byte) if 0x20 < byte < 0x7F else "?" for byte in raw_path[: SHOWN_MAX + 1])
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."


@attrs.frozen
class RequestPath:
    """An ASGI application around another one."""

    app: Any

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": plain_path(scope["path"])}
        await self.app(scope, receive, send)
