"""The KV cache in integers: which block belongs to whom, and which prefix is already there. No tensors.

A block is free, owned by rows (shared ones by several), or kept: free to be taken, yet still holding a prefix somebody
may ask for. Full blocks of a prompt are named by a chain of hashes, so equal prefixes share blocks. A chain begins with
the name of those who share with one another, if not all do: whoever finds a prefix cached learns that somebody has sent
it. Reuse needs no acknowledgement from the stages: the data lane is first in, first out through the whole route, so a
later step can never overtake an earlier one that still reads the block's former content.

Source of the idea of hashed prefix blocks: the PagedAttention paper (arXiv 2309.06180), section 4.
"""

from collections import OrderedDict
from collections.abc import Iterable, Set
from hashlib import blake2b

import attrs

from hydra.actors.scheduling.free_blocks import FreeBlocks
from hydra.protocol.batch import Int32Column
from hydra.protocol.ids import RowId

ROOM_BLOCKS = 32  # freed ahead of a row that starts, so that what it grows by can follow what it begins with


@attrs.define
class KvLedger:
    """`blocks_total` blocks of `block_size` tokens, numbered from 0."""

    blocks_total: int
    block_size: int
    prefix_cache: bool = True
    _free: FreeBlocks = attrs.field(init=False)
    _owners: dict[int, int] = attrs.field(factory=dict, init=False)  # block -> how many rows hold it
    _tables: dict[RowId, list[int]] = attrs.field(factory=dict, init=False)
    _likely: dict[RowId, int] = attrs.field(factory=dict, init=False)  # blocks it will have come to at its end
    _by_prefix: dict[bytes, int] = attrs.field(factory=dict, init=False)
    _prefix_of: dict[int, bytes] = attrs.field(factory=dict, init=False)
    _kept: OrderedDict[int, None] = attrs.field(factory=OrderedDict, init=False)  # oldest first

    def __attrs_post_init__(self) -> None:
        self._free = FreeBlocks(self.blocks_total)

    @property
    def blocks_free(self) -> int:
        return len(self._free) + len(self._kept)

    def table(self, row: RowId) -> tuple[int, ...]:
        return tuple(self._tables.get(row, ()))

    def holders(self) -> Set[RowId]:
        """The rows that are open."""
        return self._tables.keys()

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def blocks_of(self, row: RowId, first: int, n_tokens: int) -> list[int]:
        """The row's blocks that hold any of so many tokens from `first` on."""
        return self._tables[row][first // self.block_size : self.blocks_for(first + n_tokens)]

    def open(self, row: RowId, prompt: Int32Column, tokens: int = 0, sharers: str = "") -> int:
        """Starts a row's table with the longest cached prefix of its `sharers`; returns how many tokens that saves.

        `tokens` is how many it is likely to have at its end (see FreeBlocks); nothing is set aside for them. At least
        one token of the prompt is always left to compute, since somebody must produce the next one.
        """
        assert row not in self._tables, f"row {row} is open already"
        table = self._tables[row] = []
        self._likely[row] = self.blocks_for(tokens)
        if self.prefix_cache:
            for name in self._prefix_names(prompt, (len(prompt) - 1) // self.block_size, sharers):
                block = self._by_prefix.get(name)
                if block is None:
                    break
                self._kept.pop(block, None)
                self._owners[block] = self._owners.get(block, 0) + 1
                table.append(block)
        return len(table) * self.block_size

    def grow(self, row: RowId, tokens: int) -> list[int] | None:
        """Blocks the row needs beyond its own to hold `tokens` tokens; None (and no change) when there are too few."""
        table = self._tables[row]
        needed = self.blocks_for(tokens) - len(table)
        if needed > self.blocks_free:
            return None
        if needed <= 0:
            return []
        likely = self._likely[row] - len(table)
        fair = needed if table else max(needed, min(likely, needed + ROOM_BLOCKS))
        self._make_room(needed, fair)
        first = len(table)
        for _ in range(needed):
            block = self._free.take(row, table[-1] if table else None, fair, likely)
            self._owners[block] = 1
            table.append(block)
        return table[first:]

    def name_prompt(self, row: RowId, prompt: Int32Column, sharers: str = "") -> None:
        """The prompt's full blocks are (or, in lane order, will be) filled: its sharers may use them from now on."""
        if not self.prefix_cache:
            return
        table = self._tables[row]
        names = self._prefix_names(prompt, len(prompt) // self.block_size, sharers)
        for block, name in zip(table, names, strict=False):
            if name not in self._by_prefix and block not in self._prefix_of:
                self._by_prefix[name] = block
                self._prefix_of[block] = name

    def unname(self, blocks: Iterable[int]) -> None:
        """Whoever opens from now on shares none of these: what they hold is not to be trusted."""
        for block in blocks:
            name = self._prefix_of.pop(block, None)
            if name is None:
                continue
            del self._by_prefix[name]
            if block in self._kept:
                del self._kept[block]
                self._free.give(block)

    def close(self, row: RowId) -> None:
        """Gives the row's blocks back; named ones are kept until somebody needs the room."""
        self._likely.pop(row, None)
        self._free.release(row)
        for block in reversed(self._tables.pop(row, [])):
            self._owners[block] -= 1
            if self._owners[block] > 0:
                continue
            del self._owners[block]
            if block in self._prefix_of:
                self._kept[block] = None
            else:
                self._free.give(block)

    def check(self) -> None:
        """Every block is in exactly one place. Raises AssertionError; for tests and the simulator."""
        places = [*self._free.all(), *self._kept, *self._owners]
        assert sorted(places) == list(range(self.blocks_total)), "a block is lost or in two places"
        held: dict[int, int] = {}
        for table in self._tables.values():
            for block in table:
                held[block] = held.get(block, 0) + 1
        assert held == self._owners, "owners and tables disagree"
        assert self._likely.keys() == self._tables.keys(), "a row is remembered that holds nothing"
        names = {block: name for name, block in self._by_prefix.items()}
        assert names == self._prefix_of, "names and blocks disagree"
        assert self._kept.keys() <= names.keys(), "a block is kept that nobody could ask for"
        self._free.check()

    def _make_room(self, needed: int, fair: int) -> None:
        """Frees what has been kept the longest: as much as is needed, and within limits until there is a fair run."""
        may_go = 2 * fair if fair > needed else 0
        while self._kept and (len(self._free) < needed or (may_go > 0 and not self._free.fits(fair))):
            block, _ = self._kept.popitem(last=False)
            del self._by_prefix[self._prefix_of.pop(block)]
            self._free.give(block)
            may_go -= 1

    def _prefix_names(self, prompt: Int32Column, n_blocks: int, sharers: str) -> list[bytes]:
        names: list[bytes] = []
        name = sharers.encode()
        for start in range(0, n_blocks * self.block_size, self.block_size):
            name = blake2b(name + prompt[start : start + self.block_size].tobytes(), digest_size=16).digest()
            names.append(name)
        return names
