"""The nodes that are there, and which of them a plan may count on: they have missed no beats, the ways to them and from
them were dialled, and those that the start waits for have come. Knows no model; it never plans.
"""

from collections.abc import Iterable, Mapping

import attrs

from hydra.actors.core.facts import NodeJoined
from hydra.actors.core.machine import Effect, Send
from hydra.actors.core.names import MEMBER
from hydra.actors.planning.desired_model import NodeNoted, Recover
from hydra.actors.planning.reach import Reach
from hydra.actors.planning.startup_quorum import StartupQuorum
from hydra.actors.planning.weight_sources import WeightSources
from hydra.protocol.ids import Address, AskId, NodeId, PeerId
from hydra.protocol.messages.plans import ReachReport, Unanswered
from hydra.protocol.model.model_spec import Described
from hydra.protocol.model.source import Source


@attrs.define(eq=False)
class Presence:
    """`nodes` in join order; `usable` are those that could be counted on, once in their lives."""

    reach: Reach
    sources: WeightSources
    quorum: StartupQuorum = attrs.field(factory=StartupQuorum, init=False)
    nodes: dict[NodeId, NodeJoined] = attrs.field(factory=dict, init=False)
    usable: set[NodeId] = attrs.field(factory=set, init=False)
    _suspects: set[NodeId] = attrs.field(factory=set, init=False)

    # ------------------------------------------------------------ who comes and goes

    def begin(self, recover: Recover, now_s: float) -> list[Effect]:
        return self.quorum.begin(recover, now_s)

    def joined(self, joined: NodeJoined, now_s: float) -> list[Effect]:
        """It counts as soon as the ways to it and from it have been tried."""
        self.nodes[joined.node] = joined
        self.sources.holds(joined.node, (held.fingerprint for held in joined.held))
        self._suspects.discard(joined.node)
        self.usable.discard(joined.node)
        return self.reach.joined(joined, now_s)

    def lost(self, node: NodeId) -> None:
        self.nodes.pop(node, None)
        self.sources.forget(node)
        self.reach.lost(node)
        self._suspects.discard(node)
        self.usable.discard(node)

    def suspect(self, node: NodeId, suspect: bool) -> None:
        if node in self.nodes:
            (self._suspects.add if suspect else self._suspects.discard)(node)

    # ------------------------------------------------------------ which ways work

    def dialled(self, peer: PeerId, ask: AskId, unanswered: Iterable[Unanswered], now_s: float) -> list[Effect] | None:
        """What a Scout found; None: it is none of ours."""
        source = next((name for name, node in self.nodes.items() if node.peer == peer), None)
        return None if source is None else self.reach.answered(ask, source, unanswered, now_s)

    def greet_usable(self, now_s: float) -> tuple[list[Effect], bool]:
        """Takes in those whose ways were tried and found good; whether there were any."""
        tried = [name for name in self.nodes if name not in self.usable and self.reach.tried(name)]
        new = [name for name in tried if not self.reach.fault_of(name, now_s)]
        effects: list[Effect] = []
        for name in new:
            self.usable.add(name)
            effects += self.quorum.joined(now_s)
        return effects, bool(new)

    def note_reach(self, now_s: float) -> list[Effect]:
        """Says at both ends that a node cannot be used, or can be again."""
        effects: list[Effect] = []
        for node, fault in self.reach.news(now_s):
            report = ReachReport(generation=node.generation, fault=fault)
            effects += [NodeNoted(node.node, fault), Send(Address(node.peer, MEMBER), report)]
        return effects

    def blame(
        self, source: NodeId, target: NodeId, reason: str, now_s: float, *, at_least_s: float = 0.0
    ) -> list[Effect]:
        """An epoch ended because of this link, or because of one node (`source` and `target` are the same)."""
        quarantine_s = self.reach.broke(source, target, now_s, at_least_s=at_least_s)
        ends = " -> ".join(end or "coordinator" for end in dict.fromkeys((source, target)))
        rest = f"; in quarantine for {quarantine_s:.0f} s" if quarantine_s else ""
        noted = [NodeNoted(target or source, f"{ends}: {reason}{rest}")]
        return [*noted, *self.reach.after_break(source, target, now_s), *self.note_reach(now_s)]

    # ------------------------------------------------------------ what plans may count on

    def heard(self) -> Mapping[NodeId, NodeJoined]:
        """Those that have not missed beats, in join order."""
        return {name: node for name, node in self.nodes.items() if name not in self._suspects}

    def is_complete(self) -> bool:
        """Whether the start waits for no node any longer."""
        return self.quorum.complete([name for name in self.nodes if name in self.usable])

    def end_start(self) -> list[Effect]:
        return self.quorum.end([name for name in self.nodes if name in self.usable])

    def sources_of(self, described: Described, node: NodeId) -> tuple[Source, ...]:
        """Where this node may have the model's bytes from."""
        return self.sources.sources(described, [other for name, other in self.heard().items() if name != node])

    def check(self) -> None:
        """The invariants. Raises AssertionError; for tests and the simulator."""
        assert self.usable <= set(self.nodes) and self._suspects <= set(self.nodes), "a node that is not there counts"
