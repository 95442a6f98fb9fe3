"""The nodes that may take layers, and the orders in which they may sit. Knows memory as a number, no layer's size."""

from collections.abc import Iterator, Sequence
from itertools import pairwise, permutations

import attrs

from hydra.protocol.ids import NodeId

PERMUTED_NODES_MAX = 6  # beyond, only join order, held order and the first order that nothing blocks are compared
STEPS_MAX = 20_000  # of a search for that order, which has no quick answer in the worst case

Links = frozenset[tuple[NodeId, NodeId]]  # from, to


@attrs.frozen(kw_only=True)
class Candidate:
    """A node that may take layers. `held` are the layers of this model it has in memory now."""

    node: NodeId
    memory_bytes: int
    held: frozenset[int] = frozenset()


def possible_orders(candidates: Sequence[Candidate], blocked: Links = frozenset()) -> list[tuple[Candidate, ...]]:
    """Orders of all these candidates in which no one is followed by another that it cannot send to.

    Join order first, so that it wins among equals. Empty when there is none, or none was found in STEPS_MAX steps.
    """
    if len(candidates) > PERMUTED_NODES_MAX:
        by_held = sorted(candidates, key=lambda candidate: min(candidate.held, default=1 << 30))
        orders = (
            [tuple(candidates), tuple(by_held)]
            if any(candidate.held for candidate in candidates)
            else [tuple(candidates)]
        )
        return [order for order in orders if _is_free(order, blocked)] or _first_free(candidates, blocked)
    if not any(candidate.held for candidate in candidates) and _is_free(candidates, blocked):
        return [tuple(candidates)]
    return [order for order in permutations(candidates) if _is_free(order, blocked)]


def most_blocked(candidates: Sequence[Candidate], blocked: Links) -> Candidate:
    """Whom to do without when no order of all is possible; among equals the one that joined last."""

    def links_of(candidate: Candidate) -> int:
        there = {other.node for other in candidates}
        return sum(candidate.node in link and there.issuperset(link) for link in blocked)

    return max(reversed(candidates), key=links_of)


def _is_free(order: Sequence[Candidate], blocked: Links) -> bool:
    return not any((one.node, other.node) in blocked for one, other in pairwise(order))


def _first_free(candidates: Sequence[Candidate], blocked: Links) -> list[tuple[Candidate, ...]]:
    """Depth first, in join order."""
    steps = iter(range(STEPS_MAX))

    def longer(order: tuple[Candidate, ...], left: tuple[Candidate, ...]) -> Iterator[tuple[Candidate, ...]]:
        if not left:
            yield order
        for candidate in left:
            if next(steps, None) is None:
                return
            if not order or (order[-1].node, candidate.node) not in blocked:
                yield from longer((*order, candidate), tuple(other for other in left if other is not candidate))

    return list(next(([order] for order in longer((), tuple(candidates))), []))
