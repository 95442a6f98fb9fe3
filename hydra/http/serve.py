"""hypercorn on an inherited socket, set for long streams: a drain that ends, and connections that end well."""

import socket
from pathlib import Path
from typing import Any

import attrs
import trio
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    ConnectionState,
    Scope,
)
from hypercorn.utils import wrap_app
from quart_trio import QuartTrio

from hydra.actors.client import Cluster
from hydra.http.client_stream import CLIENT_STREAM, ClientStream
from hydra.http.load_trials import LoadTrials
from hydra.http.shutdown import Shutdown
from hydra.http.tokenizer import Words
from hydra.http.words_shelf import WordsShelf
from hydra.http.words_trial import load_tried

WRITE_DEADLINE_S = 30.0
CONNECTIONS_MAX = 4096


@attrs.frozen(kw_only=True)
class HttpSettings:
    """What the HTTP room needs to know of the configuration."""

    fd: int
    drain_timeout_s: float = 30.0
    max_body_bytes: int = 4_194_304
    write_deadline_s: float = WRITE_DEADLINE_S


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
    limit = trio.CapacityLimiter(CONNECTIONS_MAX)
    async with trio.open_nursery() as nursery:
        await nursery.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()

        async def handle(stream: trio.SocketStream) -> None:
            async with limit:
                client: Any = ClientStream(stream, settings.write_deadline_s)  # not TLS, which is what it asks for
                await TCPServer(asgi, config, context, ConnectionState({CLIENT_STREAM: client}), client)

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


async def load_words(folder: Path, template: Path | None) -> Words:
    """As a WordsShelf wants it: in a thread."""
    return await trio.to_thread.run_sync(load_tried, folder, template)


async def serve_cluster(cluster: Cluster, settings: HttpSettings, stopping: trio.Event, shelf: WordsShelf) -> None:
    """The OpenAI API over `cluster`, until `stopping`."""
    from hydra.http.app import make_app

    shutdown, trials = Shutdown(begun=stopping), LoadTrials(cluster, shelf)
    app: Any = make_app(cluster, max_body_bytes=settings.max_body_bytes, shutdown=shutdown, shelf=shelf, trials=trials)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shelf.read_ahead, cluster.models)
        nursery.start_soon(trials.run)
        await serve_app(app, settings, shutdown)
        nursery.cancel_scope.cancel()
