"""Who is waited for before the first plan, which would otherwise be made over whoever happens to come first.

Waited for are as many workers as `up` was told (its own by name: one from elsewhere is no substitute, and would fetch
what they have at hand) and the nodes that computed in a former life, each for its own time.
Where nobody knows of either, those who come are gathered until none has come for a while. Knows no model and no plan.
"""

from collections.abc import Collection

import attrs

from hydra.actors.core.machine import CancelTimer, Effect, SetTimer
from hydra.actors.planning.desired_model import Recover
from hydra.protocol.ids import NodeId

PATIENCE, AWAITED = "patience", "awaited"  # the timers: nobody is waited for any longer; nor the former nodes
GATHER_S = 2.0  # without a further join: then those that were started together are all here


@attrs.define
class StartupQuorum:
    """`waiting`: no plan yet."""

    waiting: bool = attrs.field(default=False, init=False)
    _expected: int = attrs.field(default=0, init=False)
    _local: tuple[NodeId, ...] = attrs.field(default=(), init=False)
    _former: tuple[NodeId, ...] = attrs.field(default=(), init=False)
    _gathers: bool = attrs.field(default=False, init=False)  # nobody has come yet, and none knows how many will

    def begin(self, begin: Recover, now_s: float) -> list[Effect]:
        self.waiting, self._expected, self._former = True, begin.expected, begin.nodes
        self._local = begin.local
        self._gathers = not begin.expected and not begin.nodes
        effects: list[Effect] = [SetTimer(PATIENCE, now_s + begin.patience_s)]
        if begin.nodes and begin.nodes_s < begin.patience_s:
            effects.append(SetTimer(AWAITED, now_s + begin.nodes_s))
        return effects

    def check(self) -> None:
        """Either somebody is named or counted, or whoever comes is gathered. Raises AssertionError."""
        assert not self._gathers or not self._expected, "it gathers, and knows how many will come"
        assert self._expected >= 0, f"{self._expected} workers are expected"

    def joined(self, now_s: float) -> list[Effect]:
        """Another one is here."""
        if not self._gathers:
            return []
        self.waiting = True  # again, if the first patience ended with nobody here
        return [SetTimer(PATIENCE, now_s + GATHER_S)]

    def forget_former(self) -> None:
        """Who computed in a former life and is not back yet is done without."""
        self._former = ()

    def complete(self, present: Collection[NodeId]) -> bool:
        """Whether there is nobody left to wait for."""
        back = all(node in present for node in (*self._former, *self._local))
        return not self._gathers and back and len(present) >= max(1, self._expected)

    def end(self, present: Collection[NodeId]) -> list[Effect]:
        """Everybody who was waited for is here, or has had the time to be."""
        self.waiting = False
        self._gathers = self._gathers and not present
        return [CancelTimer(PATIENCE)]
