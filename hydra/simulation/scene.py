"""The stage that a simulated cluster stands on: its nodes, who starts and ends, and the story of it.

A killed node is first cut off, then cancelled: whatever its clean-up still says is not heard, as after SIGKILL. What a
node does while it lives is not known here; whoever tells a story says so.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio

from hydra.actors.core.host import ActorHost
from hydra.actors.core.names import JOURNAL_NAME, PARENT
from hydra.actors.families.coordinator import SavedState
from hydra.actors.families.worker import ComputeStuck
from hydra.protocol.ids import NodeId
from hydra.protocol.messages.journal import JournalEntry, JournalKind, ProcessRole
from hydra.protocol.messages.membership import ChildExited
from hydra.simulation.node import Node
from hydra.simulation.plan_watch import PlanWatch
from hydra.simulation.shape import Shape
from hydra.simulation.traced_network import TracedNetwork

ROLES: dict[str, ProcessRole] = {"c": "coordinator", "f": "frontend", "w": "worker"}  # of what a parent starts
EXIT_NOTICE_S = 0.01


@attrs.define(eq=False)
class Scene(ABC):
    """Who lives, and how they begin and end."""

    shape: Shape
    seed: int
    nursery: trio.Nursery
    rng: random.Random
    network: TracedNetwork
    saved: SavedState
    nodes: dict[str, Node] = attrs.field(factory=dict)
    story: list[str] = attrs.field(factory=list)
    faults: list[BaseException] = attrs.field(factory=list)  # processes that died of their own bug
    first_saved: SavedState = attrs.field(init=False)  # what a coordinator knows that finds no state
    saves_fail: bool = False  # nothing is kept
    lasting: set[tuple[str, str]] = attrs.field(factory=set)  # (kind, whom) of faults that no calm ends
    may_fail: bool = False  # loads were made to fail: a model that was desired may be given up at start
    watch: PlanWatch | None = None
    stale_of_the_dead: int = 0
    contained_in_the_dead: int = 0  # messages that made an actor raise
    deaths: int = 0
    on_poison_back_s: float | None = 0.5  # a parent brings back whom the poison killed; None: nobody does
    parent: ActorHost | None = None
    _next_pid: int = 100

    def __attrs_post_init__(self) -> None:
        self.first_saved = self.saved

    @abstractmethod
    def main_of(self, name: str) -> Callable[[Node], Awaitable[None]]:
        """What a node of this name does while it lives."""

    def forsake(self, name: str) -> None:  # noqa: B027 - a hook, no duty
        """A frontend is gone: whoever holds the connection holds the answer."""

    def say(self, line: str) -> None:
        self.story.append(f"{trio.current_time():9.4f}  {line}")

    def kill(self, name: str, back_after_s: float | None = None) -> None:
        """SIGKILL: cut off first, cancelled afterwards. It returns after `back_after_s`; None: never by itself."""
        node = self.nodes[name]
        if not node.alive:
            return
        self.say(f"{name} (pid {node.pid}) is killed")
        node.alive = False
        self.network.kill(name)
        node.scope.cancel()
        self.stale_of_the_dead += node.stale()
        self.contained_in_the_dead += node.contained()
        self.forsake(name)
        if name != "parent" and self.parent is not None:
            self.nursery.start_soon(self._notice, node)
        if back_after_s is not None:
            self.nursery.start_soon(self._return, name, back_after_s)

    def start(self, name: str) -> None:
        """A new life of a node: "coordinator", "parent", "f1" ..., "w1" ..."""
        former = self.nodes.get(name)
        assert former is None or not former.alive
        self._next_pid += 1
        node = Node(name, former.life + 1 if former else 1, self._next_pid)
        if former is not None and ("loads", name) in self.lasting:
            node.load_fault = former.load_fault
        self.nodes[name] = node
        self.say(f"{name} (pid {node.pid}) starts")
        self.nursery.start_soon(self._live, node, self.main_of(name))
        self._write_down("child_started", node)

    def kill_child(self, order: Any) -> None:
        node = self.nodes.get(order.node_id)
        if node is not None and node.alive and node.pid == order.pid:
            self.say(f"the parent kills {node.name}: {order.why}")
            self.kill(node.name, back_after_s=1.0)

    def poisoned(self, node: Node) -> None:
        if node.alive:
            self.say(f"{node.name} computes poison")
            self.deaths += 1
            self.kill(node.name, self.on_poison_back_s)

    async def _live(self, node: Node, main: Callable[[Node], Awaitable[None]]) -> None:
        with node.scope:
            try:
                await main(node)
            except (Exception, BaseExceptionGroup) as error:
                if isinstance(error, BaseExceptionGroup) and error.split(trio.Cancelled)[1] is None:
                    raise
                if node.alive and _cause(error, ComputeStuck):
                    self.say(f"{node.name} gives up: its compute thread is stuck")
                    self.kill(node.name, back_after_s=1.0)
                elif node.alive:  # what a dead one dies of is nobody's business
                    self.say(f"{node.name} died of {error!r}")
                    self.faults.append(error)
                    self.kill(node.name, 0.5)

    async def _notice(self, node: Node) -> None:
        await trio.sleep(EXIT_NOTICE_S)
        self._write_down("child_died", node, "signal 9")
        if self.parent is not None and node.name != "coordinator":
            exited = ChildExited(node_id=NodeId(node.name), pid=node.pid, how="signal 9")
            self.parent.post(PARENT, exited)

    def _write_down(self, kind: JournalKind, node: Node, reason: str = "") -> None:
        """In the parent's journal, as its supervisor does."""
        role = ROLES.get(node.name[0])
        if self.parent is not None and role is not None:
            entry = JournalEntry(kind=kind, actor=PARENT, node=node.name, role=role, reason=reason, pid=node.pid)
            self.parent.post(JOURNAL_NAME, entry)

    async def _return(self, name: str, after_s: float) -> None:
        await trio.sleep(after_s)
        if not self.nodes[name].alive:
            self.start(name)

    async def later(self, after_s: float, do: Callable[[], None]) -> None:
        await trio.sleep(after_s)
        do()


def _cause(why: BaseException, kind: type[BaseException]) -> bool:
    if isinstance(why, BaseExceptionGroup):
        return why.split(kind)[1] is None
    return isinstance(why, kind)
