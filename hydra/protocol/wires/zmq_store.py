"""The store lane over ZeroMQ: a ROUTER under Trio where files are held, a DEALER of one connection for who asks.

A chunk is lent to ZeroMQ until it has left, never copied. What an asker does not take waits in its own queue, up to the
bound, and goes with its connection. Knows no message.
"""

import itertools

import zmq

from hydra.protocol.blob import Buffer, Frames
from hydra.protocol.faults import WireError
from hydra.protocol.ids import PeerId
from hydra.protocol.store_lane import ANSWER_BYTES_MAX, ASK_BYTES_MAX
from hydra.protocol.wires.wire import Delivery, LineBroken, WireClosed, WireFull
from hydra.protocol.wires.zmq_sockets import (
    Ears,
    Socket,
    bind,
    connect,
    from_peer,
    make_socket,
    push_now,
    receive,
    send_to,
    take,
)

# Whatever ends a connection, or keeps it from ever being one.
_ENDINGS = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_news_names = itertools.count()


class ZmqStoreHub:
    """Implements StoreHub."""

    def __init__(self, context: "zmq.Context[Socket]", addr: str, bound: int) -> None:
        self._router = make_socket(context, zmq.ROUTER, bound, ASK_BYTES_MAX)
        self.addr = bind(self._router, addr)
        self._ears = Ears(self._router)

    def send_nowait(self, peer: PeerId, frames: Frames) -> None:
        if self._ears.closed:
            raise WireClosed("this end was closed")
        try:
            send_to(self._router, peer, frames, copy=False)
        finally:
            self._ears.nudge()

    async def receive(self) -> list[Delivery]:
        return await self._ears.hear(self._drain)

    def _drain(self) -> list[Delivery]:
        deliveries: list[Delivery] = []
        take(self._router, deliveries, from_peer)
        return deliveries

    def close(self) -> None:
        self._ears.close()


class ZmqStoreLine:
    """Implements BlockingStoreLine. That a connection ended is heard on a socket inside the process."""

    def __init__(self, context: "zmq.Context[Socket]", addr: str, bound: int) -> None:
        self._addr = addr
        self._dealer = make_socket(context, zmq.DEALER, bound, ANSWER_BYTES_MAX, redial=False)
        self._news = self._dealer.get_monitor_socket(_ENDINGS, f"inproc://store-line-{next(_news_names)}")
        self._poller = zmq.Poller()
        self._poller.register(self._dealer, zmq.POLLIN)
        self._poller.register(self._news, zmq.POLLIN)
        try:
            connect(self._dealer, addr)
        except WireError:
            self._news.close()
            raise

    def send(self, frames: Frames) -> None:
        if not push_now(self._dealer, frames):
            if self._news.poll(0):
                raise LineBroken(f"the connection to {self._addr} is gone")
            raise WireFull(f"the queue towards {self._addr} is full")

    def receive(self, timeout_s: float) -> tuple[Buffer, ...] | None:
        ready = dict(self._poller.poll(max(0, round(timeout_s * 1000))))
        if self._dealer in ready:  # what has arrived counts, whatever became of the connection
            return receive(self._dealer, zmq.NOBLOCK)
        if self._news in ready:
            raise LineBroken(f"the connection to {self._addr} is gone")
        return None

    def close(self) -> None:
        if not self._dealer.closed:
            self._dealer.disable_monitor()
            self._dealer.close()
            self._news.close()
