"""Data lanes that can be dead in one direction while all other lanes live: who dials there finds nobody, and what is
sent on a connection that stands vanishes. What the lanes carry, and whether anybody notices, is not known here.
"""

from typing import Any

import trio

from hydra.protocol.blob import Frames
from hydra.protocol.wires.wire import Lane
from hydra.simulation.memory_network import MemoryNetwork
from hydra.simulation.memory_wire import MemoryStepLink, MemoryWires


class Severed:
    """The hops of a network that lead nowhere, as (source, target)."""

    def __init__(self) -> None:
        self.hops: set[tuple[str, str]] = set()

    def restore(self, network: MemoryNetwork, hop: tuple[str, str]) -> None:
        """It works again. The sockets noticed meanwhile, so its connections are new ones."""
        if hop not in self.hops:
            return
        self.hops.remove(hop)
        for end in list(network.ends):
            if isinstance(end, SeverableLink) and end.hop() == hop:
                end.hang_up()
        network.dial_all()


class SeverableLink(MemoryStepLink):
    """A link over a hop that may be severed."""

    def __init__(self, network: MemoryNetwork, life: Any, addr: str, bound: int, severed: Severed) -> None:
        self._severed = severed
        super().__init__(network, life, addr, bound)

    def hop(self) -> tuple[str, str] | None:
        return None if self._listener is None else (self.life.name, self._listener.life.name)

    def send_nowait(self, frames: Frames) -> None:
        if self._pipe is not None and self.hop() in self._severed.hops and self._may_send():
            self._network.sent += 1
            self._network.dropped += 1
            return
        super().send_nowait(frames)

    def _reachable(self) -> Any:
        listener = super()._reachable()
        severed = listener is not None and (self.life.name, listener.life.name) in self._severed.hops
        return None if severed else listener


class SeverableWires(MemoryWires):
    """Implements Wires like the class above it, over hops that may be severed."""

    def __init__(self, network: MemoryNetwork, node: str, severed: Severed) -> None:
        super().__init__(network, node)
        self._severed = severed

    def step_link(self, addr: str, bound: int) -> SeverableLink:
        return SeverableLink(self._network, self._life, addr, bound, self._severed)

    async def dial(self, addr: str, lane: Lane, timeout_s: float) -> str:
        """Empty when somebody answered."""
        there = self._network.listeners.get(addr)
        if lane == "steps" and there is not None and (self._life.name, there.life.name) in self._severed.hops:
            await trio.sleep(timeout_s)
            return "no answer"
        answer: str = await super().dial(addr, lane, timeout_s)
        return answer
