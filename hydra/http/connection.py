"""One client's connection as hypercorn serves it, with another end and another beginning.

Promises: what a client has closed is gone at once, and not after the time that an idle connection has; only HTTP/1.0
and 1.1 are spoken; what is no HTTP is answered with the same JSON as every other error. It knows no route.

HTTP/2 without TLS is not taken up: its streams have windows of their own, which no deadline of a socket can see.
"""

import uuid
from http import HTTPStatus
from typing import Any

import h11
import orjson
import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Event, Updated
from hypercorn.protocol.events import Request
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from hydra.http.client_stream import CLIENT_STREAM, ClientStream
from hydra.http.failures import error_body
from hydra.http.strict_http import StrictConnection

FAULT_CHARACTERS_MAX = 200

log = structlog.get_logger()


class PlainHttp(H11Protocol):
    """HTTP/1 and nothing that it could be upgraded to: what asks for another protocol is an ordinary request."""

    connection: StrictConnection

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connection = StrictConnection(self.config.h11_max_incomplete_size)

    async def _check_protocol(self, event: h11.Request) -> None:
        """HTTP/2 begins here in hypercorn."""

    async def _create_stream(self, request: h11.Request) -> None:
        """As in hypercorn, without its websockets."""
        self.stream = HTTPStream(
            self.app, self.config, self.context, self.task_group, self.ssl, self.client, self.server,
            self.stream_send, STREAM_ID,
        )  # fmt: skip
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1

    async def _send_error_response(self, status_code: int) -> None:
        """Of bytes that are no request, for which no app is ever asked."""
        fault = self.connection.fault[:FAULT_CHARACTERS_MAX]
        code = HTTPStatus(status_code).phrase.lower().replace(" ", "_")
        body = orjson.dumps(error_body(f"this is no HTTP request: {fault}", "invalid_request_error", None, code))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            (b"x-request-id", b"req-" + uuid.uuid4().hex.encode()),
            *self.config.response_headers("h11"),
        ]
        await self._send_h11_event(h11.Response(status_code=status_code, headers=headers))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())


class Connection(TCPServer):
    """From the first byte to the last. `idle` has those on which nothing is under way, the longest idle first."""

    def __init__(
        self, app: Any, config: Config, context: WorkerContext, client: ClientStream, idle: "dict[Connection, None]"
    ) -> None:
        stream: Any = client  # not TLS, which is what it asks for
        super().__init__(app, config, context, ConnectionState({CLIENT_STREAM: client}), stream)
        self._client = client
        self._idle = idle
        self._ended = False  # the client has closed it
        self._life = trio.CancelScope()

    def evict(self) -> None:
        """It makes room for another."""
        self._idle.pop(self, None)
        self._life.cancel()

    async def run(self) -> None:
        """A bug that shows in it costs this connection, and not the server."""
        with self._life:
            try:
                socket = self._client.socket
                try:
                    client = parse_socket_addr(socket.family, socket.getpeername())
                    server = parse_socket_addr(socket.family, socket.getsockname())
                except OSError:
                    return  # the peer was gone before anything was said
                async with TaskGroup() as task_group:
                    await self._serve(task_group, client, server)
            except Exception:
                log.exception("a connection failed")
            finally:
                self._idle.pop(self, None)
                await self._close()

    async def _serve(self, task_group: TaskGroup, client: Any, server: Any) -> None:
        self._task_group = task_group
        state = ConnectionState(self.state)
        protocol: Any = PlainHttp(
            self.app, self.config, self.context, task_group, state, False, client, server, self.protocol_send
        )
        self.protocol = protocol
        await self.protocol_send(Updated(idle=True))
        await self._read_data()

    async def _read_data(self) -> None:
        await super()._read_data()
        self._ended = True
        self._idle.pop(self, None)
        await self.idle_task.stop()  # which would otherwise wait for a client that has gone

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, Updated):
            if event.idle and self._ended:
                return  # an answer that ended as its client left: nothing will come that is worth waiting for
            self._idle.pop(self, None)
            if event.idle:
                self._idle[self] = None
        await super().protocol_send(event)
