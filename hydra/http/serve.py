"""hypercorn on an inherited socket, set for long streams: a drain that ends, and connections that end well."""

import resource
import socket
from pathlib import Path
from typing import Any

import attrs
import trio
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    Scope,
)
from hypercorn.utils import wrap_app
from quart_trio import QuartTrio

from hydra.actors.client import Cluster
from hydra.http.client_stream import ClientStream
from hydra.http.connection import Connection
from hydra.http.door import Door
from hydra.http.load_trials import LoadTrials
from hydra.http.shutdown import Shutdown
from hydra.protocol.settings.server import ServerSettings
from hydra.text.cache import TokenizerCache
from hydra.text.tokenizer import ModelTokenizer
from hydra.text.trial import load_tried

WRITE_DEADLINE_S = 30.0
CONNECTIONS_MAX = 4096


def connections_max() -> int:
    """As many as the process may have files open, twice over: the rest is for the cluster, and for reading models."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS_MAX if files == resource.RLIM_INFINITY else max(1, min(CONNECTIONS_MAX, files // 2))


@attrs.frozen(kw_only=True)
class HttpListener:
    """The inherited socket, and what the operator wants of the server behind it."""

    fd: int
    host: str = ""  # as the operator named it
    server: ServerSettings = attrs.field(factory=ServerSettings)
    write_deadline_s: float = WRITE_DEADLINE_S
    connections_max: int = attrs.field(factory=connections_max)


def finishing(app: QuartTrio) -> ASGIFramework:
    """`app`, except that the sending of a response's last part is never cancelled.

    That part closes the stream, and quart-trio cancels the request's tasks when it hears of it: in the middle of the
    send, before hypercorn has noted that the connection is idle. It would have no timeout then, and hold a drain.
    """

    async def whole(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def send_whole(message: ASGISendEvent) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            with trio.CancelScope(shield=last):
                await send(message)

        await app(scope, receive, send_whole)

    return whole


def hypercorn_config(listener: HttpListener) -> Config:
    config = Config()
    config.bind = []
    config.keep_alive_timeout = 30.0
    config.graceful_timeout = listener.server.drain_timeout
    config.accesslog = None
    config.errorlog = None
    config.include_server_header = False
    return config


async def serve_app(app: QuartTrio, listener: HttpListener, shutdown: Shutdown) -> None:
    """Until `shutdown.begun`; then no new connection, and open streams have the drain time to end."""
    config = hypercorn_config(listener)
    context = WorkerContext(None)
    asgi = wrap_app(finishing(app), config.wsgi_max_body_size, None)
    accepts = trio.SocketListener(trio.socket.from_stdlib_socket(socket.socket(fileno=socket.dup(listener.fd))))
    lifespan = Lifespan(asgi, config, {})
    limit = trio.CapacityLimiter(listener.connections_max)
    idle: dict[Connection, None] = {}
    async with trio.open_nursery() as nursery:
        await nursery.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()

        async def handle(stream: trio.SocketStream) -> None:
            if not limit.available_tokens and idle:
                next(iter(idle)).evict()  # who only holds a connection must not keep others out
            async with limit:
                await Connection(asgi, config, context, ClientStream(stream, listener.write_deadline_s), idle).run()

        async with trio.open_nursery() as connections:
            accepting = trio.CancelScope()

            async def accept() -> None:
                with accepting:
                    await trio.serve_listeners(handle, [accepts], handler_nursery=connections)

            connections.start_soon(accept)
            await shutdown.begun.wait()
            accepting.cancel()
            await context.terminated.set()
            nursery.start_soon(shutdown.drain, listener.server.drain_timeout)
            connections.cancel_scope.deadline = trio.current_time() + listener.server.drain_timeout
        await lifespan.wait_for_shutdown()
        nursery.cancel_scope.cancel()


async def load_words(folder: Path, template: Path | None) -> ModelTokenizer:
    """As a TokenizerCache wants it: in a thread."""
    return await trio.to_thread.run_sync(load_tried, folder, template)


async def serve_cluster(
    cluster: Cluster, listener: HttpListener, stopping: trio.Event, tokenizers: TokenizerCache
) -> None:
    """The OpenAI API over `cluster`, until `stopping`."""
    from hydra.http.app import make_app

    server = listener.server
    shutdown, trials = Shutdown(begun=stopping), LoadTrials(cluster, tokenizers)
    app: Any = make_app(
        cluster,
        max_body_bytes=server.max_body_bytes,
        shutdown=shutdown,
        tokenizers=tokenizers,
        trials=trials,
        door=Door.of(listener.host, server.allowed_hosts, server.allowed_origins),
        while_loading=server.while_loading,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tokenizers.read_ahead, cluster.models)
        nursery.start_soon(trials.run)
        await serve_app(app, listener, shutdown)
        nursery.cancel_scope.cancel()
