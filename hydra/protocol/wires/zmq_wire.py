"""The command and the data lane over ZeroMQ, and the one object that opens all lanes. Moves frames, knows no message.

Queues towards a peer live inside ZeroMQ, bounded by its high-water mark; a send never waits. Trio's ends belong to the
Trio thread, blocking ends to one compute thread each; only `wake` may be called from anywhere. Nothing here is
authenticated: see SPEC.md on binding off loopback.
"""

import contextlib
import itertools
import threading

import zmq

from hydra.protocol.blob import BLOB_BYTES_MAX, Buffer, Frames
from hydra.protocol.codec import CONTROL_BYTES_MAX
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.faults import WireError
from hydra.protocol.ids import COORDINATOR, PeerId
from hydra.protocol.wires.wire import COMMAND_BOUND, STORE_BOUND, Delivery, LaneName, WireClosed, WireFull
from hydra.protocol.wires.zmq_dial import dial
from hydra.protocol.wires.zmq_sockets import (
    RECEIVE_BATCH,
    Ears,
    Socket,
    as_reached,
    bind,
    connect,
    from_peer,
    is_of_this_machine,
    make_socket,
    push_now,
    receive,
    send_to,
    take,
)
from hydra.protocol.wires.zmq_store import ZmqStoreHub, ZmqStoreLine

HOSTS_MAX = 4096  # peers whose addresses are remembered
WAKES_MAX = 8  # on their way to a compute thread; one would do
COMMAND_LINGER_MS = 250  # so that a Goodbye leaves before the socket does
_wake_names = itertools.count()


def _from_hub(frames: tuple[Buffer, ...]) -> Delivery:
    return Delivery(COORDINATOR, frames)


def _as_it_is(frames: tuple[Buffer, ...]) -> tuple[Buffer, ...]:
    return frames


class ZmqHub:
    """Implements CommandHub: a ROUTER that says so when a peer is gone, and a PUB."""

    def __init__(self, context: "zmq.Context[Socket]", command_addr: str, broadcast_addr: str, bound: int) -> None:
        self._router = make_socket(context, zmq.ROUTER, bound, CONTROL_BYTES_MAX, COMMAND_LINGER_MS)
        self.command_addr = bind(self._router, command_addr)
        self._pub = make_socket(context, zmq.PUB, bound, CONTROL_BYTES_MAX)
        try:
            self.broadcast_addr = bind(self._pub, broadcast_addr)
        except WireError:
            self._router.close()
            raise
        self._ears = Ears(self._router)
        self._hosts: dict[PeerId, str] = {}

    def send_nowait(self, peer: PeerId, frames: Frames) -> None:
        if self._ears.closed:
            raise WireClosed("this end was closed")
        try:
            send_to(self._router, peer, frames)
        finally:
            self._ears.nudge()

    async def receive(self) -> list[Delivery]:
        return await self._ears.hear(self._drain)

    def host_of(self, peer: PeerId) -> str:
        host = self._hosts.get(peer, "")
        return "" if is_of_this_machine(host) else host

    def _drain(self) -> list[Delivery]:
        deliveries: list[Delivery] = []
        for _ in range(RECEIVE_BATCH):
            if not int(self._router.get(zmq.EVENTS)) & zmq.POLLIN:
                break
            name = self._router.recv(zmq.NOBLOCK, False)
            delivery = from_peer((name.bytes, *receive(self._router, zmq.NOBLOCK)))
            if delivery.peer not in self._hosts:
                self._remember(delivery.peer, str(name.get("Peer-Address")))
            deliveries.append(delivery)
        return deliveries

    def _remember(self, peer: PeerId, host: str) -> None:
        """The table is bounded: who has not been heard of for longest goes, and is asked anew."""
        if len(self._hosts) >= HOSTS_MAX:
            del self._hosts[next(iter(self._hosts))]
        self._hosts[peer] = host

    def broadcast_nowait(self, frames: Frames) -> None:
        if self._ears.closed:
            raise WireClosed("this end was closed")
        self._pub.send_multipart(list(frames), zmq.NOBLOCK)

    def close(self) -> None:
        self._ears.close()
        self._pub.close()


class ZmqSpoke:
    """Implements Spoke: a DEALER that bears the peer's id, and a SUB. Both keep reconnecting."""

    def __init__(
        self, context: "zmq.Context[Socket]", peer: PeerId, command_addr: str, broadcast_addr: str, bound: int
    ) -> None:
        self.peer = peer
        self._dealer = make_socket(context, zmq.DEALER, bound, CONTROL_BYTES_MAX, COMMAND_LINGER_MS)
        self._dealer.setsockopt(zmq.IDENTITY, peer.encode())
        connect(self._dealer, command_addr)
        self._sub = make_socket(context, zmq.SUB, bound, CONTROL_BYTES_MAX)
        self._sub.setsockopt(zmq.SUBSCRIBE, b"")
        connect(self._sub, broadcast_addr)
        self._ears = Ears(self._dealer, self._sub)

    def send_nowait(self, frames: Frames) -> None:
        if self._ears.closed:
            raise WireClosed("this end was closed")
        try:
            self._dealer.send_multipart(list(frames), zmq.NOBLOCK)
        except zmq.Again:
            raise WireFull("the queue towards the hub is full") from None
        finally:
            self._ears.nudge()

    async def receive(self) -> list[Delivery]:
        return await self._ears.hear(self._drain)

    def _drain(self) -> list[Delivery]:
        deliveries: list[Delivery] = []
        take(self._dealer, deliveries, _from_hub)
        take(self._sub, deliveries, _from_hub)
        return deliveries

    def close(self) -> None:
        self._ears.close()


class ZmqStepSource:
    """Implements StepSource: a bound PULL."""

    def __init__(self, context: "zmq.Context[Socket]", addr: str, bound: int) -> None:
        self._pull = make_socket(context, zmq.PULL, bound, BLOB_BYTES_MAX)
        self.addr = bind(self._pull, addr)
        self._ears = Ears(self._pull)

    async def receive(self) -> list[tuple[Buffer, ...]]:
        return await self._ears.hear(self._drain)

    def _drain(self) -> list[tuple[Buffer, ...]]:
        deliveries: list[tuple[Buffer, ...]] = []
        take(self._pull, deliveries, _as_it_is)
        return deliveries

    def close(self) -> None:
        self._ears.close()


class ZmqStepLink:
    """Implements StepLink: a PUSH with exactly one connection, whose queue waits for it."""

    def __init__(self, context: "zmq.Context[Socket]", addr: str, bound: int) -> None:
        self._push = make_socket(context, zmq.PUSH, bound, BLOB_BYTES_MAX)
        self._addr = addr
        connect(self._push, addr)

    def send_nowait(self, frames: Frames) -> None:
        if self._push.closed:
            raise WireClosed("this end was closed")
        if not push_now(self._push, frames):
            raise WireFull(f"the queue towards {self._addr} is full")

    def close(self) -> None:
        self._push.close()


class ZmqBlockingSource:
    """Implements BlockingSource: one PULL, bound for the network and, inside the process, for wakes."""

    def __init__(self, context: "zmq.Context[Socket]", addr: str, bound: int) -> None:
        self._pull = make_socket(context, zmq.PULL, bound, BLOB_BYTES_MAX)
        self.addr = bind(self._pull, addr)
        wake_addr = f"inproc://wake-{next(_wake_names)}"
        self._pull.bind(wake_addr)
        self._waker = make_socket(context, zmq.PUSH, WAKES_MAX, 0)
        self._waker.connect(wake_addr)
        self._waker_lock = threading.Lock()
        self._timeout_ms = -1

    def receive(self, timeout_s: float) -> tuple[Buffer, ...] | None:
        timeout_ms = max(0, round(timeout_s * 1000))
        if timeout_ms != self._timeout_ms:
            self._timeout_ms = timeout_ms
            self._pull.setsockopt(zmq.RCVTIMEO, timeout_ms)
        try:
            frames = receive(self._pull)
        except zmq.Again:
            return None
        is_wake = len(frames) == 1 and not len(frames[0])
        return None if is_wake else frames

    def wake(self) -> None:
        with self._waker_lock:
            if not self._waker.closed:
                with contextlib.suppress(zmq.Again):  # enough wakes are on their way
                    self._waker.send(b"", zmq.NOBLOCK)

    def close(self) -> None:
        with self._waker_lock:
            self._waker.close()
        self._pull.close()


class ZmqBlockingLink:
    """Implements BlockingLink: a PUSH that takes nothing while nobody is connected.

    A large frame is lent to ZeroMQ until it is sent: its owner must not write into it afterwards.
    """

    def __init__(self, context: "zmq.Context[Socket]", addr: str, bound: int) -> None:
        self._push = make_socket(context, zmq.PUSH, bound, BLOB_BYTES_MAX)
        self._push.setsockopt(zmq.IMMEDIATE, 1)
        connect(self._push, addr)

    def try_send(self, frames: Frames) -> bool:
        return push_now(self._push, frames)

    def close(self) -> None:
        self._push.close()


class ZmqWires:
    """Implements Wires for one process. Close the ends first, each in its own thread, then this.

    `coordinator_addr` is where this process reaches the coordinator: there are those who say they are at 0.0.0.0.
    """

    def __init__(self, coordinator_addr: str = "") -> None:
        self._context: zmq.Context[Socket] = zmq.Context()
        self._via = coordinator_addr.partition("://")[2].rpartition(":")[0]

    def hub(self, command_addr: str, broadcast_addr: str, bound: int = COMMAND_BOUND) -> ZmqHub:
        return ZmqHub(self._context, command_addr, broadcast_addr, bound)

    def spoke(self, peer: PeerId, command_addr: str, broadcast_addr: str, bound: int = COMMAND_BOUND) -> ZmqSpoke:
        return ZmqSpoke(self._context, peer, command_addr, broadcast_addr, bound)

    async def dial(self, to: Endpoint, lane: LaneName, timeout_s: float) -> str:
        return await dial(self._context, as_reached(to.addr, self._via), lane, timeout_s)

    def step_source(self, addr: str, bound: int) -> ZmqStepSource:
        return ZmqStepSource(self._context, addr, bound)

    def step_link(self, to: Endpoint, bound: int) -> ZmqStepLink:
        return ZmqStepLink(self._context, as_reached(to.addr, self._via), bound)

    def blocking_source(self, addr: str, bound: int) -> ZmqBlockingSource:
        return ZmqBlockingSource(self._context, addr, bound)

    def blocking_link(self, to: Endpoint, bound: int) -> ZmqBlockingLink:
        return ZmqBlockingLink(self._context, as_reached(to.addr, self._via), bound)

    def store_hub(self, addr: str, bound: int = STORE_BOUND) -> ZmqStoreHub:
        return ZmqStoreHub(self._context, addr, bound)

    def store_line(self, to: Endpoint, bound: int = STORE_BOUND) -> ZmqStoreLine:
        return ZmqStoreLine(self._context, as_reached(to.addr, self._via), bound)

    def close(self) -> None:
        self._context.destroy()
