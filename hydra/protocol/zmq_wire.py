"""All wires over ZeroMQ: the only file that imports zmq. It moves frames and knows no message.

One factory sets every option of every socket. Queues towards a peer live inside ZeroMQ, bounded by its high-water
mark; a send never waits. Trio's ends belong to the Trio thread, blocking ends to one compute thread each; only `wake`
may be called from anywhere. Nothing here is authenticated: see SPEC.md on binding off loopback.

ZeroMQ's descriptor only tells that something may have changed, for sending and receiving alike, and any call on the
socket uses the hint up. Hence: whoever sends looks at EVENTS afterwards and nudges the receiver.
"""

import contextlib
import itertools
import selectors
import threading
from collections.abc import Callable
from typing import TypeVar

import trio
import zmq

from hydra.protocol.blob import BLOB_BYTES_MAX, Buffer
from hydra.protocol.codec import CONTROL_BYTES_MAX
from hydra.protocol.ids import COORDINATOR, PeerId
from hydra.protocol.wire import AddressTaken, Delivery, Frames, PeerGone, WireClosed, WireError, WireFull

Socket = zmq.Socket[bytes]
T = TypeVar("T")

ZERO_COPY_BYTES = 64 << 10  # below, a copy is cheaper than the bookkeeping
RECEIVE_BATCH = 256  # messages per wake-up, so that one loud peer does not starve the loop
COMMAND_LINGER_MS = 250  # so that a Goodbye leaves before the socket does
_wake_names = itertools.count()


def _make_socket(context: "zmq.Context[Socket]", kind: int, bound: int, bytes_max: int, linger_ms: int = 0) -> Socket:
    """Every socket's every option."""
    made = context.socket(kind)
    made.setsockopt(zmq.LINGER, linger_ms)
    made.setsockopt(zmq.SNDHWM, bound)
    made.setsockopt(zmq.RCVHWM, bound)
    made.setsockopt(zmq.MAXMSGSIZE, bytes_max)
    made.setsockopt(zmq.RECONNECT_IVL, 50)
    made.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    made.setsockopt(zmq.HANDSHAKE_IVL, 5000)
    made.setsockopt(zmq.HEARTBEAT_IVL, 2000)
    made.setsockopt(zmq.HEARTBEAT_TIMEOUT, 10000)
    made.setsockopt(zmq.TCP_KEEPALIVE, 1)
    made.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)
    if kind == zmq.ROUTER:
        made.setsockopt(zmq.ROUTER_MANDATORY, 1)
    made.copy_threshold = ZERO_COPY_BYTES
    return made


def _bind(socket: Socket, addr: str) -> str:
    """The address really bound, with the port in place of 0."""
    try:
        socket.bind(addr)
    except zmq.ZMQError as why:
        socket.close()
        if why.errno == zmq.EADDRINUSE:
            raise AddressTaken(f"{addr} is taken by another process") from why
        raise WireError(f"cannot bind {addr}: {why}") from why
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return endpoint.rstrip(b"\0").decode()


def _connect(socket: Socket, addr: str) -> None:
    try:
        socket.connect(addr)
    except zmq.ZMQError as why:
        socket.close()
        raise WireError(f"cannot connect to {addr}: {why}") from why


class _Ears:
    """Waits, in Trio, until one of its sockets has something to read."""

    def __init__(self, *sockets: Socket) -> None:
        self._sockets = sockets
        self._selector = selectors.DefaultSelector()  # on Linux and macOS itself something to select on
        for socket in sockets:
            self._selector.register(int(socket.getsockopt(zmq.FD)), selectors.EVENT_READ)
        self._fd: int = self._selector.fileno()
        self._waiting: trio.CancelScope | None = None
        self.closed = False

    def nudge(self) -> None:
        """After any call on a socket that is not a receive: it may have used up the hint."""
        if self._waiting is not None and self._something_there():
            self._waiting.cancel()

    def _something_there(self) -> bool:
        return any(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN for socket in self._sockets)

    async def hear(self, drain: Callable[[], list[T]]) -> list[T]:
        """What `drain` finds, as soon as it finds anything. Cancellation loses nothing."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            if self.closed:
                raise WireClosed("this end was closed")
            if found := drain():
                await trio.lowlevel.cancel_shielded_checkpoint()
                return found
            if self._something_there():
                continue
            with trio.CancelScope() as self._waiting:
                try:
                    await trio.lowlevel.wait_readable(self._fd)
                except trio.ClosedResourceError:
                    raise WireClosed("this end was closed") from None
                finally:
                    self._waiting = None

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            trio.lowlevel.notify_closing(self._fd)
            self._selector.close()
            for socket in self._sockets:
                socket.close()


def _receive(socket: Socket, flags: int = 0) -> tuple[Buffer, ...]:
    """One whole message, large frames uncopied. Half the price of recv_multipart, which asks RCVMORE every time."""
    frames: list[Buffer] = []
    while True:
        frame = socket.recv(flags, False)
        frames.append(frame.buffer if len(frame) > ZERO_COPY_BYTES else frame.bytes)
        if not frame.more:
            return tuple(frames)


def _push_now(socket: Socket, frames: Frames) -> bool:
    """Sends without waiting; False when the queue is full.

    A send that must not wait looks at the news of its pipe only once a millisecond, and may believe a queue full that
    has long been emptied. Asking for the events makes it look now.
    """
    return _put(socket, frames) or (bool(int(socket.get(zmq.EVENTS)) & zmq.POLLOUT) and _put(socket, frames))


def _put(socket: Socket, frames: Frames) -> bool:
    try:
        if len(frames) == 1:
            socket.send(frames[0], zmq.NOBLOCK, len(frames[0]) <= ZERO_COPY_BYTES)
        else:
            socket.send_multipart(list(frames), zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return False
    return True


def _take(socket: Socket, into: list[T], as_item: Callable[[tuple[Buffer, ...]], T]) -> None:
    for _ in range(RECEIVE_BATCH):
        try:
            frames = _receive(socket, zmq.NOBLOCK)
        except zmq.Again:
            return
        into.append(as_item(frames))


def _from_peer(frames: tuple[Buffer, ...]) -> Delivery:
    return Delivery(PeerId(bytes(frames[0]).decode(errors="surrogateescape")), frames[1:])


def _from_hub(frames: tuple[Buffer, ...]) -> Delivery:
    return Delivery(COORDINATOR, frames)


def _as_it_is(frames: tuple[Buffer, ...]) -> tuple[Buffer, ...]:
    return frames


class ZmqHub:
    """Implements Hub: a ROUTER that says so when a peer is gone, and a PUB."""

    def __init__(self, context: "zmq.Context[Socket]", command_addr: str, broadcast_addr: str, bound: int) -> None:
        self._router = _make_socket(context, zmq.ROUTER, bound, CONTROL_BYTES_MAX, COMMAND_LINGER_MS)
        self.command_addr = _bind(self._router, command_addr)
        self._pub = _make_socket(context, zmq.PUB, bound, CONTROL_BYTES_MAX)
        try:
            self.broadcast_addr = _bind(self._pub, broadcast_addr)
        except WireError:
            self._router.close()
            raise
        self._ears = _Ears(self._router)

    def send_nowait(self, peer: PeerId, frames: Frames) -> None:
        if self._ears.closed:
            raise WireClosed("this end was closed")
        try:
            self._router.send_multipart([peer.encode(errors="surrogateescape"), *frames], zmq.NOBLOCK)
        except zmq.Again:
            raise WireFull(f"the queue towards {peer} is full") from None
        except zmq.ZMQError as why:
            if why.errno != zmq.EHOSTUNREACH:
                raise
            raise PeerGone(peer) from None
        finally:
            self._ears.nudge()

    async def receive(self) -> list[Delivery]:
        return await self._ears.hear(self._drain)

    def _drain(self) -> list[Delivery]:
        found: list[Delivery] = []
        _take(self._router, found, _from_peer)
        return found

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
        self._dealer = _make_socket(context, zmq.DEALER, bound, CONTROL_BYTES_MAX, COMMAND_LINGER_MS)
        self._dealer.setsockopt(zmq.IDENTITY, peer.encode())
        _connect(self._dealer, command_addr)
        self._sub = _make_socket(context, zmq.SUB, bound, CONTROL_BYTES_MAX)
        self._sub.setsockopt(zmq.SUBSCRIBE, b"")
        _connect(self._sub, broadcast_addr)
        self._ears = _Ears(self._dealer, self._sub)

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
        found: list[Delivery] = []
        _take(self._dealer, found, _from_hub)
        _take(self._sub, found, _from_hub)
        return found

    def close(self) -> None:
        self._ears.close()


class ZmqStepSource:
    """Implements StepSource: a bound PULL."""

    def __init__(self, context: "zmq.Context[Socket]", addr: str, bound: int) -> None:
        self._pull = _make_socket(context, zmq.PULL, bound, BLOB_BYTES_MAX)
        self.addr = _bind(self._pull, addr)
        self._ears = _Ears(self._pull)

    async def receive(self) -> list[tuple[Buffer, ...]]:
        return await self._ears.hear(self._drain)

    def _drain(self) -> list[tuple[Buffer, ...]]:
        found: list[tuple[Buffer, ...]] = []
        _take(self._pull, found, _as_it_is)
        return found

    def close(self) -> None:
        self._ears.close()


class ZmqStepLink:
    """Implements StepLink: a PUSH with exactly one connection, whose queue waits for it."""

    def __init__(self, context: "zmq.Context[Socket]", addr: str, bound: int) -> None:
        self._push = _make_socket(context, zmq.PUSH, bound, BLOB_BYTES_MAX)
        self._addr = addr
        _connect(self._push, addr)

    def send_nowait(self, frames: Frames) -> None:
        if self._push.closed:
            raise WireClosed("this end was closed")
        if not _push_now(self._push, frames):
            raise WireFull(f"the queue towards {self._addr} is full")

    def close(self) -> None:
        self._push.close()


class ZmqBlockingSource:
    """Implements BlockingSource: one PULL, bound for the network and, inside the process, for wakes."""

    def __init__(self, context: "zmq.Context[Socket]", addr: str, bound: int) -> None:
        self._pull = _make_socket(context, zmq.PULL, bound, BLOB_BYTES_MAX)
        self.addr = _bind(self._pull, addr)
        wake_addr = f"inproc://wake-{next(_wake_names)}"
        self._pull.bind(wake_addr)
        self._waker = _make_socket(context, zmq.PUSH, 8, 0)
        self._waker.connect(wake_addr)
        self._waker_lock = threading.Lock()
        self._timeout_ms = -1

    def receive(self, timeout_s: float) -> tuple[Buffer, ...] | None:
        timeout_ms = max(0, round(timeout_s * 1000))
        if timeout_ms != self._timeout_ms:
            self._timeout_ms = timeout_ms
            self._pull.setsockopt(zmq.RCVTIMEO, timeout_ms)
        try:
            frames = _receive(self._pull)
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
        self._push = _make_socket(context, zmq.PUSH, bound, BLOB_BYTES_MAX)
        self._push.setsockopt(zmq.IMMEDIATE, 1)
        _connect(self._push, addr)

    def try_send(self, frames: Frames) -> bool:
        return _push_now(self._push, frames)

    def close(self) -> None:
        self._push.close()


class ZmqWires:
    """Implements Wires for one process. Close the ends first, each in its own thread, then this."""

    def __init__(self) -> None:
        self._context: zmq.Context[Socket] = zmq.Context()

    def hub(self, command_addr: str, broadcast_addr: str, bound: int = 1000) -> ZmqHub:
        return ZmqHub(self._context, command_addr, broadcast_addr, bound)

    def spoke(self, peer: PeerId, command_addr: str, broadcast_addr: str, bound: int = 1000) -> ZmqSpoke:
        return ZmqSpoke(self._context, peer, command_addr, broadcast_addr, bound)

    def step_source(self, addr: str, bound: int) -> ZmqStepSource:
        return ZmqStepSource(self._context, addr, bound)

    def step_link(self, addr: str, bound: int) -> ZmqStepLink:
        return ZmqStepLink(self._context, addr, bound)

    def blocking_source(self, addr: str, bound: int) -> ZmqBlockingSource:
        return ZmqBlockingSource(self._context, addr, bound)

    def blocking_link(self, addr: str, bound: int) -> ZmqBlockingLink:
        return ZmqBlockingLink(self._context, addr, bound)

    def close(self) -> None:
        self._context.destroy()
