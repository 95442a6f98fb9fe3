"""The KV blocks nobody holds, and which of them to give to whom.

A row whose blocks ascend one by one is read in place by the kernels; any other must be gathered first, which costs a
third of its attention. So a row that starts is given the lowest run of free blocks that will hold it to its end, the
rest of that run is promised to it, and whoever else needs blocks starts elsewhere as long as there is an elsewhere. A
promise reserves nothing: every free block can be had. Knows rows by number, and neither tokens nor prefixes.
"""

import attrs

from hydra.protocol.ids import RowId

TAKEN, FREE, PROMISED = b"\0", b"\1", b"\2"  # PROMISED is free too


@attrs.define
class FreeBlocks:
    """Of the blocks 0 .. total - 1, all free at first."""

    total: int
    _state: bytearray = attrs.field(init=False)
    _count: int = attrs.field(init=False)
    _promises: dict[RowId, tuple[int, int]] = attrs.field(factory=dict, init=False)  # the runs, in part taken already

    def __attrs_post_init__(self) -> None:
        self._state, self._count = bytearray(FREE * self.total), self.total

    def __len__(self) -> int:
        return self._count

    def __contains__(self, block: int) -> bool:
        return 0 <= block < self.total and self._state[block] != TAKEN[0]

    def all(self) -> list[int]:
        return [block for block in range(self.total) if block in self]

    def fits(self, length: int) -> bool:
        """Whether a run of so many blocks is free and promised to nobody."""
        return self._state.find(FREE * length) >= 0

    def take(self, row: RowId, last: int | None, fair: int, likely: int) -> int:
        """One block for a row whose last block is `last`; there must be one.

        As it looks, `likely` more blocks are wanted until the row ends, this one among them; where no run is so long,
        one of `fair` is better than a longer one that others would have to give up.
        """
        assert self._count > 0, "no block is free"
        block = -1 if last is None else last + 1
        if last is None or block not in self:
            block = self._start(row, fair, max(fair, likely))
        self._state[block] = TAKEN[0]
        self._count -= 1
        return block

    def give(self, block: int) -> None:
        assert block not in self, f"block {block} is free already"
        self._state[block] = FREE[0]
        self._count += 1

    def release(self, row: RowId) -> None:
        """The row wants nothing more: what was promised to it is anybody's."""
        first, end = self._promises.pop(row, (0, 0))
        self._state[first:end] = self._state[first:end].replace(PROMISED, FREE)

    def check(self) -> None:
        """The count is that of the blocks, and promises lie within. Raises AssertionError."""
        assert self._count == self.total - self._state.count(TAKEN), "blocks are counted that are not free"
        for row, (first, end) in self._promises.items():
            assert 0 <= first <= end <= self.total, f"row {row} was promised blocks that are not there"

    def _start(self, row: RowId, fair: int, likely: int) -> int:
        """The first block of the lowest run long enough, of half of the longest promise, or of whatever is left."""
        self.release(row)
        length = likely
        while length > 0:
            first = self._state.find(FREE * length)
            if first >= 0:
                return self._promise(row, first, first + length)
            if length == fair and (half := self._half_promise(fair)) is not None:
                return self._promise(row, *half)
            length = max(fair, length // 2) if length > fair else length // 2
        return self._state.rfind(PROMISED)  # the far end, which its owner would reach last

    def _promise(self, row: RowId, first: int, end: int) -> int:
        self._promises[row] = (first, end)
        self._state[first:end] = PROMISED * (end - first)
        return first

    def _half_promise(self, length: int) -> tuple[int, int] | None:
        """Taken from whoever has most left of its promise, if that is at least twice `length`."""
        left = {row: self._state.count(PROMISED, *run) for row, run in self._promises.items()}
        owner = max(left, key=left.__getitem__, default=None)
        if owner is None or left[owner] < 2 * length:
            return None
        first, end = self._promises[owner]
        middle = end - left[owner] // 2
        if self._state[middle:end].count(PROMISED) < end - middle:
            return None  # somebody was given blocks out of it already
        self._promises[owner] = (first, middle)
        return middle, end
