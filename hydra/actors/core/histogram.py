"""Durations counted by bounds, as Prometheus takes them. Pure; it knows no unit and no clock."""

from bisect import bisect_left

import attrs

from hydra.protocol.messages.models import Sample

BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 150.0)


@attrs.define(eq=False)
class Histogram:
    """One metric without labels of its own."""

    name: str
    help: str
    bounds: tuple[float, ...] = BOUNDS_S
    total: float = attrs.field(default=0.0, init=False)
    count: int = attrs.field(default=0, init=False)
    _counts: list[int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self.bounds, value)] += 1
        self.total += value
        self.count += 1

    def sample(self, *labels: tuple[str, str]) -> Sample:
        """Each bound with all that is not above it."""
        below, buckets = 0, []
        for bound, count in zip(self.bounds, self._counts, strict=False):
            below += count
            buckets.append((bound, below))
        return Sample(
            name=self.name,
            kind="histogram",
            help=self.help,
            value=self.total,
            labels=labels,
            buckets=tuple(buckets),
            count=self.count,
        )
