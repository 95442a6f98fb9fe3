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
class HttpSettings:
    """What the HTTP room needs to know of the configuration."""

    fd: int
    drain_timeout_s: float = 30.0
    max_body_bytes: int = 4_194_304
    listening_host: str = ""  # as the operator named it
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    waits_for_loads: bool = True
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


def hypercorn_config(settings: HttpSettings) -> Config:
    config = Config()
    config.bind = []
    config.keep_alive_timeout = 30.0
    config.graceful_timeout = settings.drain_timeout_s
    config.accesslog = None
    config.errorlog = None
    config.include_server_header = False
    return config


async def serve_app(app: QuartTrio, settings: HttpSettings, shutdown: Shutdown) -> None:
    """Until `shutdown.begun`; then no new connection, and open streams have the drain time to end."""
    config = hypercorn_config(settings)
    context = WorkerContext(None)
    asgi = wrap_app(finishing(app), config.wsgi_max_body_size, None)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(socket.socket(fileno=socket.dup(settings.fd))))
    lifespan = Lifespan(asgi, config, {})
    limit = trio.CapacityLimiter(settings.connections_max)
    idle: dict[Connection, None] = {}
    async with trio.open_nursery() as nursery:
        await nursery.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()

        async def handle(stream: trio.SocketStream) -> None:
            if not limit.available_tokens and idle:
                next(iter(idle)).evict()  # who only holds a connection must not keep others out
            async with limit:
                await Connection(asgi, config, context, ClientStream(stream, settings.write_deadline_s), idle).run()

        async with trio.open_nursery() as connections:
            accepting = trio.CancelScope()

            async def accept() -> None:
                with accepting:
                    await trio.serve_listeners(handle, [listener], handler_nursery=connections)

            connections.start_soon(accept)
            await shutdown.begun.wait()
            accepting.cancel()
            await context.terminated.set()
            nursery.start_soon(shutdown.drain, settings.drain_timeout_s)
            connections.cancel_scope.deadline = trio.current_time() + settings.drain_timeout_s
        await lifespan.wait_for_shutdown()
        nursery.cancel_scope.cancel()


async def load_words(folder: Path, template: Path | None) -> ModelTokenizer:
    """As a TokenizerCache wants it: in a thread."""
    return await trio.to_thread.run_sync(load_tried, folder, template)


async def serve_cluster(
    cluster: Cluster, settings: HttpSettings, stopping: trio.Event, tokenizers: TokenizerCache
) -> None:
    """The OpenAI API over `cluster`, until `stopping`."""
    from hydra.http.app import make_app

    shutdown, trials = Shutdown(begun=stopping), LoadTrials(cluster, tokenizers)
    app: Any = make_app(
        cluster,
        max_body_bytes=settings.max_body_bytes,
        shutdown=shutdown,
        tokenizers=tokenizers,
        trials=trials,
        door=Door.of(settings.listening_host, settings.allowed_hosts, settings.allowed_origins),
        waits_for_loads=settings.waits_for_loads,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tokenizers.read_ahead, cluster.models)
        nursery.start_soon(trials.run)
        await serve_app(app, settings, shutdown)
        nursery.cancel_scope.cancel()
