"""What every ZeroMQ end is made of: one factory that sets every option, frames in and out, waiting under Trio.

ZeroMQ's descriptor only tells that something may have changed, for sending and receiving alike, and any call on the
socket uses the hint up. Hence: whoever sends looks at EVENTS afterwards and nudges the receiver. Knows neither lanes
nor messages.
"""

import selectors
import socket as plain_socket
from collections.abc import Callable
from typing import TypeVar

import trio
import zmq

from hydra.protocol.blob import Buffer, Frames
from hydra.protocol.faults import WireError
from hydra.protocol.ids import PeerId
from hydra.protocol.wires.wire import AddressTaken, Delivery, PeerGone, WireClosed, WireFull

Socket = zmq.Socket[bytes]
T = TypeVar("T")

ZERO_COPY_BYTES = 64 << 10  # below, a copy is cheaper than the bookkeeping
EVERYWHERE = ("0.0.0.0", "*", "[::]")
RECEIVE_BATCH = 256  # messages per wake-up, so that one loud peer does not starve the loop


def make_socket(
    context: "zmq.Context[Socket]", kind: int, bound: int, bytes_max: int, linger_ms: int = 0, *, redial: bool = True
) -> Socket:
    """Every socket's every option. Without `redial` its first connection is its only one."""
    opened = context.socket(kind)
    opened.setsockopt(zmq.LINGER, linger_ms)
    opened.setsockopt(zmq.SNDHWM, bound)
    opened.setsockopt(zmq.RCVHWM, bound)
    opened.setsockopt(zmq.MAXMSGSIZE, bytes_max)
    opened.setsockopt(zmq.RECONNECT_IVL, 50 if redial else -1)
    opened.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    opened.setsockopt(zmq.HANDSHAKE_IVL, 5000)
    opened.setsockopt(zmq.HEARTBEAT_IVL, 2000)
    opened.setsockopt(zmq.HEARTBEAT_TIMEOUT, 10000)
    opened.setsockopt(zmq.TCP_KEEPALIVE, 1)
    opened.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)
    if kind == zmq.ROUTER:
        opened.setsockopt(zmq.ROUTER_MANDATORY, 1)
    opened.copy_threshold = ZERO_COPY_BYTES
    return opened


def bind(socket: Socket, addr: str) -> str:
    """The address really bound, with the port in place of 0."""
    try:
        socket.bind(addr)
    except zmq.ZMQError as error:
        socket.close()
        if error.errno == zmq.EADDRINUSE:
            raise AddressTaken(f"{addr} is taken by another process") from error
        raise WireError(f"cannot bind {addr}: {error}") from error
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return endpoint.rstrip(b"\0").decode()


def as_reached(addr: str, via: str) -> str:
    """`addr` for a process that reaches its neighbours' machine as `via`, a host; empty: as it is.

    Who is bound to every address of the coordinator's machine says 0.0.0.0: "where you found the coordinator".
    """
    scheme, _, rest = addr.partition("://")
    host, _, port = rest.rpartition(":")
    return f"{scheme}://{via}:{port}" if via and host in EVERYWHERE else addr


def is_of_this_machine(host: str) -> bool:
    """Whether an IP address is one of our own: only those can be bound to."""
    family = plain_socket.AF_INET6 if ":" in host else plain_socket.AF_INET
    with plain_socket.socket(family, plain_socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def connect(socket: Socket, addr: str) -> None:
    try:
        socket.connect(addr)
    except zmq.ZMQError as error:
        socket.close()
        raise WireError(f"cannot connect to {addr}: {error}") from error


class Ears:
    """Waits, in Trio, until one of its sockets has something to read."""

    def __init__(self, *sockets: Socket) -> None:
        self.sockets = sockets
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
        return any(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN for socket in self.sockets)

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
            for socket in self.sockets:
                socket.close()


def receive(socket: Socket, flags: int = 0) -> tuple[Buffer, ...]:
    """One whole message, large frames uncopied. Half the price of recv_multipart, which asks RCVMORE every time."""
    frames: list[Buffer] = []
    while True:
        frame = socket.recv(flags, False)
        frames.append(frame.buffer if len(frame) > ZERO_COPY_BYTES else frame.bytes)
        if not frame.more:
            return tuple(frames)


def push_now(socket: Socket, frames: Frames) -> bool:
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


def take(socket: Socket, into: list[T], as_item: Callable[[tuple[Buffer, ...]], T]) -> None:
    """What has arrived. Asks before it receives: on Python 3.12 and later, where pyzmq is built for the stable ABI, an
    exception out of it compiles every frame of its traceback anew.
    """
    for _ in range(RECEIVE_BATCH):
        if not int(socket.get(zmq.EVENTS)) & zmq.POLLIN:
            return
        into.append(as_item(receive(socket, zmq.NOBLOCK)))


def from_peer(frames: tuple[Buffer, ...]) -> Delivery:
    return Delivery(PeerId(bytes(frames[0]).decode(errors="surrogateescape")), frames[1:])


def send_to(router: Socket, peer: PeerId, frames: Frames, *, copy: bool = True) -> None:
    """One message to one of a ROUTER's peers, without waiting. Raises WireFull or PeerGone."""
    try:
        router.send_multipart([peer.encode(errors="surrogateescape"), *frames], zmq.NOBLOCK, copy=copy)
    except zmq.Again:
        raise WireFull(f"the queue towards {peer!r} is full") from None
    except zmq.ZMQError as error:
        if error.errno != zmq.EHOSTUNREACH:
            raise
        raise PeerGone(peer) from None
