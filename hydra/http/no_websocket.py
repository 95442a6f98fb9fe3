"""Nothing here is a websocket: whoever asks for one is told so in HTTP, and nobody behind this hears of it."""

from typing import Any

import attrs
import orjson

from hydra.http.failures import error_body


@attrs.frozen
class NoWebsocket:
    """An ASGI application around another one."""

    app: Any

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not _wants_websocket(scope["headers"]):
            await self.app(scope, receive, send)
            return
        message = "there are no websockets here; ask without `Upgrade`, and stream with server-sent events"
        body = orjson.dumps(error_body(message, "invalid_request_error", None, "not_found"))
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 404, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})


def _wants_websocket(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name.lower() == b"upgrade" and value.strip().lower() == b"websocket" for name, value in headers)
