"""The store lane of a simulation: a hub as over sockets, and a line that waits in the loop instead of a thread.

A line has one connection: where nobody listens, or once it is cut off, it is broken for good. Knows no message.
"""

from collections import deque

from hydra.protocol.blob import Frames
from hydra.protocol.ids import PeerId
from hydra.protocol.wires.wire import Delivery, LineBroken, PeerGone, WireFull
from hydra.simulation.memory_ends import Inbox, Listener, MemoryDialler
from hydra.simulation.memory_network import Life, MemoryNetwork, Pipe, Taken


class MemoryStoreHub(Listener):
    """Implements StoreHub."""

    def __init__(self, network: MemoryNetwork, life: Life, addr: str, bound: int) -> None:
        self._inbox: Inbox[Delivery] = Inbox(life)
        self._bound = bound
        self._down: dict[PeerId, Pipe] = {}
        super().__init__(network, life, addr)

    def send_nowait(self, peer: PeerId, frames: Frames) -> None:
        if not self._may_send():
            return
        if peer not in self._down:
            raise PeerGone(peer)
        if self._down[peer].is_full:
            raise WireFull(f"{self._bound} messages wait for {peer}")
        self._down[peer].send(tuple(frames))

    async def receive(self) -> list[Delivery]:
        return await self._inbox.take()

    def _answer(self, caller: MemoryDialler, bound: int) -> Pipe:
        assert isinstance(caller, MemoryStoreLine)
        down = self._network.pipe(self.life, caller.life, caller.hear, self._bound, caller.hang_up)
        self._down[caller.peer] = down
        return super()._answer(caller, bound)

    def _hear(self, caller: MemoryDialler, frames: Taken, pipe: Pipe) -> None:
        assert isinstance(caller, MemoryStoreLine)
        self._inbox.put(Delivery(caller.peer, frames), pipe)

    def _forget(self, caller: MemoryDialler) -> None:
        super()._forget(caller)
        assert isinstance(caller, MemoryStoreLine)
        self._down.pop(caller.peer).snap()

    def vanish(self, graceful: bool) -> None:
        super().vanish(graceful)
        self._inbox.close()

    def wake(self) -> None:
        self._inbox.wake()


class MemoryStoreLine(MemoryDialler):
    """BlockingStoreLine, save that `receive` is awaited and whoever waits sets the deadline."""

    def __init__(self, network: MemoryNetwork, life: Life, addr: str, bound: int) -> None:
        self.peer = PeerId(f"line-{next(network.ports)}")
        self._inbox: Inbox[Taken] = Inbox(life)
        self._arrived: deque[Taken] = deque()
        self._broken = False
        super().__init__(network, life, addr, bound)

    def send(self, frames: Frames) -> None:
        if self._broken:
            raise LineBroken(f"the connection to {self._addr} is gone")
        self.send_nowait(frames)

    async def receive(self) -> Taken:
        if not self._arrived:
            self._arrived.extend(await self._inbox.take())
        return self._arrived.popleft()

    def hear(self, frames: Taken, pipe: Pipe) -> None:
        self._inbox.put(frames, pipe)

    def dial(self) -> None:
        if self._broken:
            return
        if self._addr in self._network.listeners:
            super().dial()
        else:
            self._network.later(self.life.name, self.life.name, self.hang_up)  # refused

    def hang_up(self) -> None:
        if not self._broken:
            self._broken = True
            self._network.dropped += len(self._outbox)
            self._outbox.clear()
            self._inbox.end(LineBroken(f"the connection to {self._addr} is gone"))
        super().hang_up()

    def vanish(self, graceful: bool) -> None:
        super().vanish(graceful)
        self._inbox.close()

    def wake(self) -> None:
        self._inbox.wake()
