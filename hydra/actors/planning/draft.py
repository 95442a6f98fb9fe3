"""A plan that has not begun: who could hold which layers of a model now. Counts on nodes and ways that were tried, and
rather on those that did not fail before. Decides nothing about when, and changes nothing.
"""

from collections.abc import Container, Iterable, Mapping
from contextlib import suppress

import attrs

from hydra.actors.core.facts import NodeJoined
from hydra.actors.planning.candidates import Candidate
from hydra.actors.planning.node_groups import group_of
from hydra.actors.planning.placement import Route, candidates_for, route_dtype
from hydra.actors.planning.plan_settings import PlanSettings
from hydra.actors.planning.policies import POLICIES
from hydra.actors.planning.reach import Reach
from hydra.actors.planning.split import LayerShare, SplitLimits
from hydra.protocol.ids import NodeId
from hydra.protocol.model.dtype import Dtype
from hydra.protocol.model.model_spec import ModelSpec
from hydra.protocol.refusal import RefusalError


@attrs.frozen(kw_only=True)
class Wanted:
    """A model, the dtype it was asked for in, the route that holds it now, and the routes of other models."""

    spec: ModelSpec
    dtype: str
    held: Route | None
    others: tuple[Route, ...]
    to_come: int = 0  # further deployments of this model that have no place yet


@attrs.frozen
class Draft:
    """`moves`: somebody would have to read a layer that it does not hold."""

    dtype: Dtype
    shares: tuple[LayerShare, ...]
    moves: bool

    @classmethod
    def of(cls, dtype: Dtype, shares: tuple[LayerShare, ...], candidates: Iterable[Candidate]) -> "Draft":
        held = {candidate.node: candidate.held for candidate in candidates}
        moves = any(not held[share.node].issuperset(range(share.first_layer, share.end_layer)) for share in shares)
        return cls(dtype, shares, moves)


@attrs.define(eq=False)
class Drafter:
    policy: PlanSettings
    reach: Reach

    def draft(
        self, wanted: Wanted, nodes: Mapping[NodeId, NodeJoined], now_s: float, without: Container[NodeId] = ()
    ) -> Draft:
        """Over `nodes` (in join order) but for `without`, or RefusalError. Better without the shaky, rather with them
        than not at all.
        """
        able = {n: node for n, node in nodes.items() if n not in without and not self.reach.fault_of(n, now_s)}
        firm = {name: node for name, node in able.items() if name not in self.reach.shaky(now_s)}
        try:
            return self._beside_others(wanted, firm, now_s)
        except RefusalError as error:
            if firm != able:
                return self._beside_others(wanted, able, now_s)
            if error.refusal.code == "no_workers" and nodes:
                keeps_out = self.reach.sentence(now_s) or error.refusal.message
                raise RefusalError(
                    attrs.evolve(error.refusal, message=f"no worker can be used: {keeps_out}")
                ) from error
            raise

    def _beside_others(self, wanted: Wanted, nodes: Mapping[NodeId, NodeJoined], now_s: float) -> Draft:
        """Leaves nodes for as many of those to come as possible."""
        for groups in range(min(1 + wanted.to_come, len(nodes)), 1, -1):
            own = group_of(nodes, groups, wanted.held.nodes() if wanted.held is not None else ())
            with suppress(RefusalError):  # too little memory in one group: then for fewer of them
                return self._over(wanted, own, now_s)
        return self._over(wanted, nodes, now_s)

    def _over(self, wanted: Wanted, nodes: Mapping[NodeId, NodeJoined], now_s: float) -> Draft:
        dtype = route_dtype(wanted.spec, wanted.dtype, list(nodes.values()))
        limits = SplitLimits.of(self.policy, dtype)
        candidates = candidates_for(wanted.spec, dtype, nodes, held=wanted.held, others=wanted.others)
        split = POLICIES[self.policy.cluster.policy]
        return Draft.of(dtype, split(wanted.spec, candidates, limits, self.reach.blocked(now_s)), candidates)
