"""All wires inside one process and one seed: what a cluster looks like to a simulation.

Keeps the contract of `wire` under virtual time. Order holds per connection; a broken connection loses what was in
flight and dials again; what a killed node says on its way out is not heard. No message is understood here.
"""

from typing import NoReturn

import trio

from hydra.protocol.blob import Frames
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import COORDINATOR, PeerId
from hydra.protocol.wires.wire import STORE_BOUND, Delivery, LaneName, PeerGone, WireFull
from hydra.simulation.memory_ends import Inbox, Listener, MemoryDialler
from hydra.simulation.memory_network import Life, Link, MemoryNetwork, Pipe, Taken, uniform
from hydra.simulation.memory_store import MemoryStoreHub, MemoryStoreLine

__all__ = ["Link", "MemoryNetwork", "MemoryWires", "uniform"]


class MemoryHub(Listener):
    """Implements CommandHub."""

    def __init__(self, network: MemoryNetwork, life: Life, addr: str, broadcast_addr: str, bound: int) -> None:
        self._inbox: Inbox[Delivery] = Inbox(life)
        self._bound = bound
        self._down: dict[PeerId, tuple[MemorySpoke, Pipe, Pipe]] = {}
        super().__init__(network, life, addr)
        self.command_addr = self.addr
        self.broadcast_addr = broadcast_addr

    def host_of(self, peer: PeerId) -> str:
        """One machine."""
        return ""

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

    def _admits(self, caller: MemoryDialler) -> bool:
        return isinstance(caller, MemorySpoke) and caller.peer not in self._down

    def _answer(self, caller: MemoryDialler, bound: int) -> Pipe:
        assert isinstance(caller, MemorySpoke)
        down = self._network.pipe(self.life, caller.life, caller.hear, self._bound, caller.hang_up)
        news = self._network.pipe(self.life, caller.life, caller.hear, self._bound, None)
        self._down[caller.peer] = (caller, down, news)
        return super()._answer(caller, bound)

    def _hear(self, caller: MemoryDialler, frames: Taken, pipe: Pipe) -> None:
        assert isinstance(caller, MemorySpoke)
        self._inbox.put(Delivery(caller.peer, frames), pipe)

    def _forget(self, caller: MemoryDialler) -> None:
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


class MemorySpoke(MemoryDialler):
    """Implements Spoke."""

    def __init__(self, network: MemoryNetwork, life: Life, peer: PeerId, addr: str, bound: int) -> None:
        self.peer = peer
        self._inbox: Inbox[Delivery] = Inbox(life)
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


class MemoryStepSource(Listener):
    """Implements StepSource."""

    def __init__(self, network: MemoryNetwork, life: Life, addr: str) -> None:
        self._inbox: Inbox[Taken] = Inbox(life)
        super().__init__(network, life, addr)

    async def receive(self) -> list[Taken]:
        return await self._inbox.take()

    def _hear(self, caller: MemoryDialler, frames: Taken, pipe: Pipe) -> None:
        self._inbox.put(frames, pipe)

    def vanish(self, graceful: bool) -> None:
        super().vanish(graceful)
        self._inbox.close()

    def wake(self) -> None:
        self._inbox.wake()


class MemoryStepLink(MemoryDialler):
    """Implements StepLink."""


class _Knocks(MemoryDialler):
    """A connection for its own sake, whatever the lane."""

    answered: trio.Event

    def _connected(self) -> None:
        super()._connected()
        if self._pipe is not None:
            self.answered.set()


class _StepKnock(_Knocks):
    def __init__(self, network: MemoryNetwork, life: Life, addr: str) -> None:
        self.answered = trio.Event()
        super().__init__(network, life, addr, 1)


class _StoreKnock(_Knocks, MemoryStoreLine):
    def __init__(self, network: MemoryNetwork, life: Life, addr: str) -> None:
        self.answered = trio.Event()
        MemoryStoreLine.__init__(self, network, life, addr, 1)


class MemoryWires:
    """Implements Wires for one life of one node: make a new one after `network.kill(node)`."""

    def __init__(self, network: MemoryNetwork, node: str) -> None:
        self._network = network
        self._life = network.life(node)

    def hub(self, command_addr: str, broadcast_addr: str, bound: int = 1000) -> MemoryHub:
        return MemoryHub(self._network, self._life, command_addr, broadcast_addr, bound)

    def spoke(self, peer: PeerId, command_addr: str, broadcast_addr: str, bound: int = 1000) -> MemorySpoke:
        return MemorySpoke(self._network, self._life, peer, command_addr, bound)

    async def dial(self, to: Endpoint, lane: LaneName, timeout_s: float) -> str:
        kind = _StoreKnock if lane == "store" else _StepKnock
        knock = kind(self._network, self._life, to.addr)
        try:
            with trio.move_on_after(timeout_s):
                await knock.answered.wait()
                return ""
            return "no answer"
        finally:
            knock.close()

    def step_source(self, addr: str, bound: int) -> MemoryStepSource:
        return MemoryStepSource(self._network, self._life, addr)

    def step_link(self, to: Endpoint, bound: int) -> MemoryStepLink:
        return MemoryStepLink(self._network, self._life, to.addr, bound)

    def blocking_source(self, addr: str, bound: int) -> NoReturn:
        raise RuntimeError("no threads in a simulation")

    def blocking_link(self, to: Endpoint, bound: int) -> NoReturn:
        raise RuntimeError("no threads in a simulation")

    def store_hub(self, addr: str, bound: int = STORE_BOUND) -> MemoryStoreHub:
        return MemoryStoreHub(self._network, self._life, addr, bound)

    def waiting_store_line(self, to: Endpoint, bound: int = STORE_BOUND) -> MemoryStoreLine:
        """In place of `store_line`: a simulated loader waits in the loop."""
        return MemoryStoreLine(self._network, self._life, to.addr, bound)

    def store_line(self, to: Endpoint, bound: int = STORE_BOUND) -> NoReturn:
        raise RuntimeError("no threads in a simulation")
