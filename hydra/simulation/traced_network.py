"""A network whose whole history is one number. Knows no message."""

import zlib
from collections.abc import Callable

import attrs
import trio

from hydra.simulation.memory_network import Life, MemoryNetwork, Pipe, Taken
from hydra.simulation.severed_lanes import Severed


@attrs.define(eq=False)
class TracedNetwork(MemoryNetwork):
    """A network that adds every message that arrives to a running sum, so that two histories can be compared.

    `strikes` says what happens right after the n-th arrival.
    """

    trace: int = 0
    arrivals: int = 0
    severed: Severed = attrs.field(factory=Severed)
    strikes: dict[int, Callable[[], None]] = attrs.field(factory=dict)

    def pipe(
        self,
        source: Life,
        target: Life,
        arrive: Callable[[Taken, Pipe], None],
        bound: int,
        on_break: Callable[[], None] | None,
    ) -> Pipe:
        def traced(frames: Taken, pipe: Pipe) -> None:
            trace = zlib.crc32(repr((trio.current_time(), source.name, target.name)).encode(), self.trace)
            for frame in frames:
                trace = zlib.crc32(frame, trace)
            self.trace = trace
            arrive(frames, pipe)
            self.arrivals += 1
            if self.arrivals in self.strikes:
                self.strikes.pop(self.arrivals)()

        return super().pipe(source, target, traced, bound, on_break)
