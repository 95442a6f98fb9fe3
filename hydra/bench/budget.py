"""What a budget is: a ratio between two things measured together, and how far it may go.

Absolute times belong to a machine and an hour; a ratio belongs to the program. Every measurement alternates between
its two sides in many short rounds, and the median of the rounds' ratios counts.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class RatioBudget:
    """One line of the table. `higher` says which way is good."""

    name: str
    what: str
    must: float
    aim: float
    higher: bool = False

    def holds(self, ratio: float) -> bool:
        return ratio >= self.must if self.higher else ratio <= self.must


@attrs.frozen(kw_only=True)
class Measured:
    """A ratio and how it came about: plain numbers with their units in their names.

    `notes` are lines for the table: what was measured beside the budget.
    """

    ratio: float
    detail: dict[str, Any]
    notes: tuple[str, ...] = ()


BUDGETS = (
    RatioBudget(name="P1", what="time per token over HTTP, 2 stages / bare torch loop", must=1.05, aim=1.02),
    RatioBudget(name="P2", what="round trip between two stages / raw blocking pyzmq", must=1.6, aim=1.3),
    RatioBudget(
        name="P4a",
        what="throughput of a full pipeline of timed stages / its slowest stage",
        must=0.95,
        aim=0.98,
        higher=True,
    ),
    RatioBudget(
        name="P4b",
        what="throughput of 2 torch stages / the same processes running free",
        must=0.90,
        aim=0.95,
        higher=True,
    ),
    RatioBudget(name="R", what="peak memory of a CPU worker / its weights + KV touched + 300 MB", must=1.1, aim=1.05),
    RatioBudget(
        name="L",
        what="bytes per second of loading / of plain parallel reads, both into fresh memory",
        must=0.7,
        aim=0.9,
        higher=True,
    ),
    RatioBudget(
        name="G",
        what="on CUDA: bytes per second of 4-bit products at one row / of a copy on the device",
        must=0.6,
        aim=0.8,
        higher=True,
    ),
    RatioBudget(
        name="Q4",
        what="bytes per second of a product of one row by 4 bits / of a plain read of as many",
        must=0.6,
        aim=0.85,
        higher=True,
    ),
    RatioBudget(name="Q8", what="the same by 8 bits", must=0.6, aim=0.85, higher=True),
    RatioBudget(
        name="Q16",
        what="time of a product of 16 rows in float32 / by the slowest encoding",
        must=1.0,
        aim=1.2,
        higher=True,
    ),
    RatioBudget(
        name="QT",
        what="tokens per second of a 0.3 B model in int4 / in float32, batch 1",
        must=3.0,
        aim=5.0,
        higher=True,
    ),
    RatioBudget(
        name="RQ",
        what="peak memory of a worker of int4, also while loading / its weights + KV + 300 MB",
        must=1.1,
        aim=1.05,
    ),
)


def median_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Of (ours, theirs) pairs, each measured in one round."""
    return statistics.median(ours / theirs for ours, theirs in pairs)


def spread(pairs: Sequence[tuple[float, float]]) -> list[float]:
    """Every round's ratio, so that a reader sees how noisy it was."""
    return [round(ours / theirs, 3) for ours, theirs in pairs]
