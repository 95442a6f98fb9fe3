"""What every end of a simulated wire is made of: an inbox, a life that can end under it, listening and dialling.

Where it differs from sockets: a cut link swallows in silence (a real one notices after its heartbeats), and `bound`
counts everything from the sender's call to the receiver's `receive`. Knows no lane.
"""

from abc import ABC, abstractmethod
from collections import deque
from functools import partial
from typing import Generic, TypeVar

import trio

from hydra.protocol.blob import Frames
from hydra.protocol.faults import WireError
from hydra.protocol.wires.wire import AddressTaken, WireClosed, WireFull
from hydra.simulation.memory_network import Life, MemoryNetwork, Pipe, Taken

T = TypeVar("T")


class Inbox(Generic[T]):
    """What has arrived at one end. Never full: the pipes towards it are bounded."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._items: list[T] = []
        self._from: list[Pipe] = []
        self._news = trio.Event()
        self._end: WireError | None = None

    def put(self, item: T, pipe: Pipe) -> None:
        self._items.append(item)
        self._from.append(pipe)
        self.wake()

    def wake(self) -> None:
        self._news.set()

    async def take(self) -> list[T]:
        await trio.lowlevel.checkpoint()
        while not self._items or self._life.paused or self._life.dead:
            if self._end is not None and not self._life.dead:
                raise self._end
            self._news = trio.Event()
            await self._news.wait()
        items, self._items = self._items, []
        pipes, self._from = self._from, []
        for pipe in pipes:
            pipe.waiting -= 1
        return items

    def close(self) -> None:
        self._items, self._from = [], []
        self.end(WireClosed("this end was closed"))

    def end(self, why: WireError) -> None:
        """Nothing more will come: what has arrived may still be taken, then `take` raises."""
        self._end = why
        self.wake()


class MemoryEnd(ABC):
    """What all ends share: a life that can end under them, and closing once."""

    def __init__(self, network: MemoryNetwork, life: Life) -> None:
        self._network = network
        self.life = life
        self._closed = False
        if not life.dead:
            network.ends.append(self)

    @property
    def n_outbox(self) -> int:
        return 0

    def dial(self) -> None:  # noqa: B027 - a hook, no duty
        """An end that is bound waits."""

    def _may_send(self) -> bool:
        """False: the node was killed, so whatever it still says on its way out is not heard."""
        if self.life.dead:
            return False
        if self._closed:
            raise WireClosed("this end was closed")
        return True

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if not self.life.dead:
                self._network.ends.remove(self)
                self.vanish(graceful=True)

    @abstractmethod
    def vanish(self, graceful: bool) -> None:
        """Leaves the network: by closing, or by being killed."""

    def wake(self) -> None:  # noqa: B027 - a hook, no duty
        """An end that only sends has nothing to look at."""


class Listener(MemoryEnd):
    """An end that is bound to an address."""

    def __init__(self, network: MemoryNetwork, life: Life, addr: str) -> None:
        super().__init__(network, life)
        if addr.endswith(":0"):
            addr = f"{addr[:-1]}{next(network.ports)}"
        self.addr = addr
        self._callers: list[MemoryDialler] = []
        if life.dead:
            return
        if addr in network.listeners:
            network.ends.remove(self)
            raise AddressTaken(f"{addr} is taken")
        network.listeners[addr] = self
        network.dial_all()

    def vanish(self, graceful: bool) -> None:
        self._network.listeners.pop(self.addr, None)
        for caller in list(self._callers):
            caller.hang_up()

    def _admits(self, caller: "MemoryDialler") -> bool:
        return True

    def _answer(self, caller: "MemoryDialler", bound: int) -> Pipe:
        """A new connection: the pipe on which the caller will be heard."""
        self._callers.append(caller)
        return self._network.pipe(caller.life, self.life, partial(self._hear, caller), bound, caller.hang_up)

    @abstractmethod
    def _hear(self, caller: "MemoryDialler", frames: Taken, pipe: Pipe) -> None:
        """What becomes of frames that have arrived."""

    def _forget(self, caller: "MemoryDialler") -> None:
        if caller in self._callers:
            self._callers.remove(caller)


class MemoryDialler(MemoryEnd):
    """An end that connects to an address and keeps trying; what is said meanwhile waits, up to the bound."""

    def __init__(self, network: MemoryNetwork, life: Life, addr: str, bound: int) -> None:
        super().__init__(network, life)
        self._addr = addr
        self._bound = bound
        self._outbox: deque[Taken] = deque()
        self._pipe: Pipe | None = None
        self._listener: Listener | None = None
        self._dialling = False
        self.dial()

    @property
    def n_outbox(self) -> int:
        return len(self._outbox)

    def send_nowait(self, frames: Frames) -> None:
        if not self._may_send():
            return
        if self._pipe is not None:
            if self._pipe.is_full:
                raise WireFull(f"{self._bound} messages wait for {self._addr}")
            self._pipe.send(tuple(frames))
        elif len(self._outbox) >= self._bound:
            raise WireFull(f"{self._bound} messages wait for a connection to {self._addr}")
        else:
            self._network.sent += 1
            self._outbox.append(tuple(frames))

    def _reachable(self) -> Listener | None:
        listener = self._network.listeners.get(self._addr)
        if self._closed or self.life.dead or self._pipe is not None or listener is None:
            return None
        there, here = listener.life, self.life
        cut = self._network.link(here.name, there.name).cut or self._network.link(there.name, here.name).cut
        return None if cut or there.paused or here.paused or not listener._admits(self) else listener

    def dial(self) -> None:
        listener = self._reachable()
        if listener is not None and not self._dialling:
            self._dialling = True
            self._network.later(self.life.name, listener.life.name, self._connected)

    def _connected(self) -> None:
        self._dialling = False
        listener = self._reachable()
        if listener is None:
            return  # whatever makes it reachable again dials again
        self._listener = listener
        self._pipe = listener._answer(self, self._bound)
        while self._outbox and self._pipe is not None:
            self._pipe.send(self._outbox.popleft(), counted=True)

    def hang_up(self) -> None:
        """The connection broke; a new one is dialled as long as this end lives."""
        pipe, self._pipe = self._pipe, None
        listener, self._listener = self._listener, None
        if pipe is not None:
            pipe.snap()
        if listener is not None:
            listener._forget(self)
        self._network.dial_all()

    def vanish(self, graceful: bool) -> None:
        self._network.dropped += len(self._outbox)
        self._outbox.clear()
        if graceful and self._pipe is not None:  # what is under way arrives, then the line closes
            self._network.call_at(self._pipe.last_at, self.hang_up)
        else:
            self.hang_up()
