"""One life of one process of a simulated cluster, and what is counted in it. Knows no other node."""

from typing import Any, Literal

import attrs
import trio

from hydra.actors.families.coordinator import Coordinator
from hydra.actors.families.frontend import Frontend
from hydra.actors.families.worker import Worker
from hydra.protocol.blob import Frames
from hydra.protocol.wires.wire import Delivery, Spoke
from hydra.simulation.pocket_model import PocketCompute


@attrs.define(eq=False)
class Node:
    """One life of one process."""

    name: str
    life: int
    pid: int
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    alive: bool = True
    paused: bool = False
    hung: bool = False
    load_fault: Literal["", "refused", "hangs"] = ""  # what comes of loading here
    news: trio.Event = attrs.field(factory=trio.Event)  # paused and hung changed
    family: Any = None  # Coordinator | Frontend | Worker
    app: Any = None  # a frontend's HTTP app
    compute: PocketCompute | None = None

    async def awake(self) -> None:
        while self.paused:
            await self.news.wait()

    def change(self) -> None:
        self.news.set()
        self.news = trio.Event()

    def stale(self) -> int:
        """Steps or results of another epoch that it has refused."""
        if isinstance(self.family, Worker):
            return self.family.line.stale_dropped
        return self.family.broker.stale_dropped if isinstance(self.family, Coordinator) else 0

    def contained(self) -> int:
        """Messages that made an actor of it raise."""
        match self.family:
            case Coordinator() as coordinator:
                return coordinator._gateway.contained
            case Frontend() | Worker() as family:
                return family.membership.gateway.contained
            case _:
                return 0


class StoppableSpoke:
    """A stopped process says nothing; its timers that come due meanwhile are not heard."""

    def __init__(self, spoke: Spoke, node: Node) -> None:
        self._spoke, self._node = spoke, node
        self.peer = spoke.peer

    def send_nowait(self, frames: Frames) -> None:
        if not self._node.paused:
            self._spoke.send_nowait(frames)

    async def receive(self) -> list[Delivery]:
        return await self._spoke.receive()

    def close(self) -> None:
        self._spoke.close()
