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


def possible_orders(seats: Sequence[Candidate], blocked: Links = frozenset()) -> list[tuple[Candidate, ...]]:
    """Orders of all these seats in which no one is followed by another that it cannot send to.

    Join order first, so that it wins among equals. Empty when there is none, or none was found in STEPS_MAX steps.
    """
    if len(seats) > PERMUTED_NODES_MAX:
        by_held = sorted(seats, key=lambda seat: min(seat.held, default=1 << 30))
        orders = [tuple(seats), tuple(by_held)] if any(seat.held for seat in seats) else [tuple(seats)]
        return [order for order in orders if _is_free(order, blocked)] or _first_free(seats, blocked)
    if not any(seat.held for seat in seats) and _is_free(seats, blocked):
        return [tuple(seats)]
    return [order for order in permutations(seats) if _is_free(order, blocked)]


def most_blocked(seats: Sequence[Candidate], blocked: Links) -> Candidate:
    """Whom to do without when no order of all is possible; among equals the one that joined last."""

    def links_of(seat: Candidate) -> int:
        there = {other.node for other in seats}
        return sum(seat.node in link and there.issuperset(link) for link in blocked)

    return max(reversed(seats), key=links_of)


def _is_free(order: Sequence[Candidate], blocked: Links) -> bool:
    return not any((one.node, other.node) in blocked for one, other in pairwise(order))


def _first_free(seats: Sequence[Candidate], blocked: Links) -> list[tuple[Candidate, ...]]:
    """Depth first, in join order."""
    steps = iter(range(STEPS_MAX))

    def longer(order: tuple[Candidate, ...], left: tuple[Candidate, ...]) -> Iterator[tuple[Candidate, ...]]:
        if not left:
            yield order
        for seat in left:
            if next(steps, None) is None:
                return
            if not order or (order[-1].node, seat.node) not in blocked:
                yield from longer((*order, seat), tuple(other for other in left if other is not seat))

    return list(next(([order] for order in longer((), tuple(seats))), []))
