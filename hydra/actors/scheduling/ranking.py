"""Items in the order of keys that change. To put, to drop and to find the first cost O(log n), however many there are.

A heap whose outdated entries stay where they are until they come to the top, or until they are the greater part of it.
It knows nothing of what it ranks.
"""

import heapq
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import attrs

T = TypeVar("T", bound=Hashable)
Key = tuple[int, ...]
OUTDATED_MIN = 64  # so many entries are not worth a clearing


@attrs.define(eq=False)
class Ranking(Generic[T]):
    """Each item once, under its latest key."""

    _heap: list[tuple[Key, int, T]] = attrs.field(factory=list, init=False)
    _current: dict[T, tuple[Key, int]] = attrs.field(factory=dict, init=False)
    _serial: int = attrs.field(default=0, init=False)

    def __len__(self) -> int:
        return len(self._current)

    def put(self, item: T, key: Key) -> None:
        """Ranks the item, or moves it to where its new key belongs."""
        current = self._current.get(item)
        if current is not None and current[0] == key:
            return
        self._serial += 1
        self._current[item] = (key, self._serial)
        heapq.heappush(self._heap, (key, self._serial, item))
        if len(self._heap) > 2 * len(self._current) + OUTDATED_MIN:
            self._heap = [(key, serial, item) for item, (key, serial) in self._current.items()]
            heapq.heapify(self._heap)

    def drop(self, item: T) -> None:
        self._current.pop(item, None)

    def key_of(self, item: T) -> Key:
        return self._current[item][0]

    def first(self, fits: Callable[[T], bool] | None = None) -> T | None:
        """The item with the least key, of those that fit. Whoever does not fit costs O(log n) each."""
        passed: list[tuple[Key, int, T]] = []
        match: T | None = None
        while self._heap:
            key, serial, item = self._heap[0]
            if self._current.get(item) != (key, serial):
                heapq.heappop(self._heap)
                continue
            if fits is None or fits(item):
                match = item
                break
            passed.append(heapq.heappop(self._heap))
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return match
