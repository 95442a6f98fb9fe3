"""All wires inside one process and one seed: what a cluster looks like to a simulation.

Keeps the contract of `wire` under virtual time. Order holds per connection; a broken connection loses what was in
flight and dials again; what a killed node says on its way out is not heard. No message is understood here.

Where it differs from sockets: a cut link swallows in silence (a real one notices after its heartbeats), and `bound`
counts everything from the sender's call to the receiver's `receive`.
"""

from collections import deque
from functools import partial
from typing import Generic, NoReturn, TypeVar

import trio

from hydra.protocol.ids import COORDINATOR, PeerId
from hydra.protocol.memory_network import Life, Link, MemoryNetwork, Pipe, Taken, uniform
from hydra.protocol.wire import AddressTaken, Delivery, Frames, PeerGone, WireClosed, WireFull

__all__ = ["Link", "MemoryNetwork", "MemoryWires", "uniform"]

T = TypeVar("T")


class _Inbox(Generic[T]):
    """What has arrived at one end. Never full: the pipes towards it are bounded."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._items: list[T] = []
        self._from: list[Pipe] = []
        self._news = trio.Event()
        self.closed = False

    def put(self, item: T, pipe: Pipe) -> None:
        self._items.append(item)
        self._from.append(pipe)
        self.wake()

    def wake(self) -> None:
        self._news.set()

    async def take(self) -> list[T]:
        await trio.lowlevel.checkpoint()
        while not self._items or self._life.paused or self._life.dead:
            if self.closed and not self._life.dead:
                raise WireClosed("this end was closed")
            self._news = trio.Event()
            await self._news.wait()
        items, self._items = self._items, []
        pipes, self._from = self._from, []
        for pipe in pipes:
            pipe.waiting -= 1
        return items

    def close(self) -> None:
        self.closed = True
        self._items, self._from = [], []
        self.wake()


class _End:
    """What all ends share: a life that can end under them, and closing once."""

    def __init__(self, network: "MemoryNetwork", life: Life) -> None:
        self._network = network
        self.life = life
        self._closed = False
        if not life.dead:
            network.ends.append(self)

    @property
    def n_outbox(self) -> int:
        return 0

    def dial(self) -> None:
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

    def vanish(self, graceful: bool) -> None:
        """Leaves the network: by closing, or by being killed."""
        raise NotImplementedError

    def wake(self) -> None:
        """An end that only sends has nothing to look at."""


class _Listener(_End):
    """An end that is bound to an address."""

    def __init__(self, network: "MemoryNetwork", life: Life, addr: str) -> None:
        super().__init__(network, life)
        if addr.endswith(":0"):
            addr = f"{addr[:-1]}{next(network.ports)}"
        self.addr = addr
        self._callers: list[_Dialler] = []
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

    def _admits(self, caller: "_Dialler") -> bool:
        return True

    def _answer(self, caller: "_Dialler", bound: int) -> Pipe:
        """A new connection: the pipe on which the caller will be heard."""
        self._callers.append(caller)
        return self._network.pipe(caller.life, self.life, partial(self._hear, caller), bound, caller.hang_up)

    def _hear(self, caller: "_Dialler", frames: Taken, pipe: Pipe) -> None:
        raise NotImplementedError

    def _forget(self, caller: "_Dialler") -> None:
        if caller in self._callers:
            self._callers.remove(caller)


class _Dialler(_End):
    """An end that connects to an address and keeps trying; what is said meanwhile waits, up to the bound."""

    def __init__(self, network: "MemoryNetwork", life: Life, addr: str, bound: int) -> None:
        super().__init__(network, life)
        self._addr = addr
        self._bound = bound
        self._outbox: deque[Taken] = deque()
        self._pipe: Pipe | None = None
        self._listener: _Listener | None = None
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

    def _reachable(self) -> _Listener | None:
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


class MemoryHub(_Listener):
    """Implements Hub."""

    def __init__(self, network: "MemoryNetwork", life: Life, addr: str, broadcast_addr: str, bound: int) -> None:
        self._inbox: _Inbox[Delivery] = _Inbox(life)
        self._bound = bound
        self._down: dict[PeerId, tuple[MemorySpoke, Pipe, Pipe]] = {}
        super().__init__(network, life, addr)
        self.command_addr = self.addr
        self.broadcast_addr = broadcast_addr

    def send_nowait(self, peer: PeerId, frames: Frames) -> None:
        if not self._may_send():
            return
        if peer not in self._down:
            raise PeerGone(peer)
        _, pipe, _ = self._down[peer]
        if pipe.is_full:
            raise WireFull(f"{self._bound} messages wait for {peer}")
        pipe.send(tuple(frames))

    async def receive(self) -> list[Delivery]:
        return await self._inbox.take()

    def broadcast_nowait(self, frames: Frames) -> None:
        if self._may_send():
            for _, _, news in self._down.values():
                if not news.is_full:
                    news.send(tuple(frames))

    def _admits(self, caller: _Dialler) -> bool:
        return isinstance(caller, MemorySpoke) and caller.peer not in self._down

    def _answer(self, caller: _Dialler, bound: int) -> Pipe:
        assert isinstance(caller, MemorySpoke)
        down = self._network.pipe(self.life, caller.life, caller.hear, self._bound, caller.hang_up)
        news = self._network.pipe(self.life, caller.life, caller.hear, self._bound, None)
        self._down[caller.peer] = (caller, down, news)
        return super()._answer(caller, bound)

    def _hear(self, caller: _Dialler, frames: Taken, pipe: Pipe) -> None:
        assert isinstance(caller, MemorySpoke)
        self._inbox.put(Delivery(caller.peer, frames), pipe)

    def _forget(self, caller: _Dialler) -> None:
        super()._forget(caller)
        assert isinstance(caller, MemorySpoke)
        _, down, news = self._down.pop(caller.peer)
        down.snap()
        news.snap()

    def vanish(self, graceful: bool) -> None:
        super().vanish(graceful)
        self._inbox.close()

    def wake(self) -> None:
        self._inbox.wake()


class MemorySpoke(_Dialler):
    """Implements Spoke."""

    def __init__(self, network: "MemoryNetwork", life: Life, peer: PeerId, addr: str, bound: int) -> None:
        self.peer = peer
        self._inbox: _Inbox[Delivery] = _Inbox(life)
        super().__init__(network, life, addr, bound)

    async def receive(self) -> list[Delivery]:
        return await self._inbox.take()

    def hear(self, frames: Taken, pipe: Pipe) -> None:
        self._inbox.put(Delivery(COORDINATOR, frames), pipe)

    def vanish(self, graceful: bool) -> None:
        super().vanish(graceful)
        self._inbox.close()

    def wake(self) -> None:
        self._inbox.wake()


class MemoryStepSource(_Listener):
    """Implements StepSource."""

    def __init__(self, network: "MemoryNetwork", life: Life, addr: str) -> None:
        self._inbox: _Inbox[Taken] = _Inbox(life)
        super().__init__(network, life, addr)

    async def receive(self) -> list[Taken]:
        return await self._inbox.take()

    def _hear(self, caller: _Dialler, frames: Taken, pipe: Pipe) -> None:
        self._inbox.put(frames, pipe)

    def vanish(self, graceful: bool) -> None:
        super().vanish(graceful)
        self._inbox.close()

    def wake(self) -> None:
        self._inbox.wake()


class MemoryStepLink(_Dialler):
    """Implements StepLink."""


class MemoryWires:
    """Implements Wires for one life of one node: make a new one after `network.kill(node)`."""

    def __init__(self, network: MemoryNetwork, node: str) -> None:
        self._network = network
        self._life = network.life(node)

    def hub(self, command_addr: str, broadcast_addr: str, bound: int = 1000) -> MemoryHub:
        return MemoryHub(self._network, self._life, command_addr, broadcast_addr, bound)

    def spoke(self, peer: PeerId, command_addr: str, broadcast_addr: str, bound: int = 1000) -> MemorySpoke:
        return MemorySpoke(self._network, self._life, peer, command_addr, bound)

    def step_source(self, addr: str, bound: int) -> MemoryStepSource:
        return MemoryStepSource(self._network, self._life, addr)

    def step_link(self, addr: str, bound: int) -> MemoryStepLink:
        return MemoryStepLink(self._network, self._life, addr, bound)

    def blocking_source(self, addr: str, bound: int) -> NoReturn:
        raise RuntimeError("no threads in a simulation")

    def blocking_link(self, addr: str, bound: int) -> NoReturn:
        raise RuntimeError("no threads in a simulation")
