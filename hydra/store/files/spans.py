"""Sets of bytes as disjoint half-open intervals. Pure arithmetic; knows no file and no byte."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

import attrs

Span = tuple[int, int]  # [start, end)


@attrs.define
class Spans:
    """A growing set of integers. Touching intervals become one."""

    _starts: list[int] = attrs.field(factory=list, init=False)
    _ends: list[int] = attrs.field(factory=list, init=False)

    @classmethod
    def of(cls, spans: Iterable[Span]) -> "Spans":
        union = cls()
        for start, end in spans:
            union.add(start, end)
        return union

    def add(self, start: int, end: int) -> None:
        """Adds [start, end); nothing when it is empty."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def missing(self, start: int, end: int) -> list[Span]:
        """What of [start, end) is not in the set, in order."""
        gaps: list[Span] = []
        for index in range(bisect_right(self._ends, start), len(self._starts)):
            if self._starts[index] >= end:
                break
            if start < self._starts[index]:
                gaps.append((start, self._starts[index]))
            start = self._ends[index]
        if start < end:
            gaps.append((start, end))
        return gaps

    def overlap(self, start: int, end: int) -> int:
        """How many of [start, end) are in the set."""
        return max(0, end - start) - sum(b - a for a, b in self.missing(start, end))

    def total(self) -> int:
        return sum(self._ends) - sum(self._starts)

    def __iter__(self) -> Iterator[Span]:
        return iter(zip(self._starts, self._ends, strict=True))


def cut(span: Span, step: int) -> Iterator[Span]:
    """[start, end) in pieces of at most `step`."""
    start, end = span
    while start < end:
        yield start, min(start + step, end)
        start += step
