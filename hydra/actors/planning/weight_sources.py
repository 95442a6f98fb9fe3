"""Who may hand out bytes of which model: workers that hold some of it, and the coordinator.

Promises: the sources of a slice, best first. Refuses to know whether they still have it; whoever asks is told.
"""

from collections.abc import Iterable

import attrs

from hydra.actors.core.facts import NodeJoined
from hydra.actors.planning.placement import lane_source
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import NodeId
from hydra.protocol.model.model_spec import Described
from hydra.protocol.model.source import Source


@attrs.define(eq=False)
class WeightSources:
    """`store_addr` is where the coordinator lends what it described; None: it does not."""

    store_addr: Endpoint | None
    _held: dict[NodeId, frozenset[str]] = attrs.field(factory=dict, init=False)  # fingerprints

    def holds(self, node: NodeId, fingerprints: Iterable[str]) -> None:
        """From now on this, and nothing else: a worker lends its last slice."""
        self._held[node] = frozenset(fingerprints)

    def forget(self, node: NodeId) -> None:
        self._held.pop(node, None)

    def sources(self, described: Described, others: Iterable[NodeJoined]) -> tuple[Source, ...]:
        """The model's own sources, and the store lane: the coordinator, and those of `others` that hold some of it.

        Of a Hub model those workers come first, since they are near, and the coordinator last: it would have to fetch.
        """
        lent = [node for node in others if described.spec.fingerprint in self._held.get(node.node, ())]
        if described.hub_commit is not None:
            return (*lane_source(None, lent), *described.sources, *lane_source(self.store_addr, ()))
        return (*described.sources, *lane_source(self.store_addr, lent))
