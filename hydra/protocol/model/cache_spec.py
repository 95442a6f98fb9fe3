"""What a layer keeps of the tokens it has seen, and how much memory that takes: the only place that counts it.

A kind of cache is a class here, a member of `CacheSpec`, and memory in kernels/attention that is made from it. The
planner and the stages ask for bytes and know no kind.
"""

from collections.abc import Iterable
from typing import TypeAlias

import attrs

from hydra.protocol.model.dtype import DTYPE_BYTES, Dtype


@attrs.frozen(kw_only=True)
class PagedKvSpec:
    """A key and a value for each key head and token, in blocks that a row takes as it grows. A layer with a sliding
    window keeps those behind it too.
    """

    n_heads: int
    head_dim: int

    def token_bytes(self, dtype: Dtype) -> int:
        return 2 * self.n_heads * self.head_dim * DTYPE_BYTES[dtype]

    def row_bytes(self, dtype: Dtype) -> int:
        """Of a row whatever its length: a row without tokens has no block."""
        return 0


CacheSpec: TypeAlias = PagedKvSpec


@attrs.frozen
class CacheSize:
    """Bytes that the caches of some layers take together: for every token of a row, and for a row however long."""

    token_bytes: int
    row_bytes: int

    def row_of(self, n_tokens: int) -> int:
        """Of one row with so many tokens."""
        return self.row_bytes + n_tokens * self.token_bytes

    def blocks_in(self, memory_bytes: int, block_size: int) -> int:
        """Whole blocks of `block_size` tokens that fit into this memory beside what one row needs anyway."""
        return max(0, memory_bytes - self.row_bytes) // (block_size * self.token_bytes)


def cache_size(caches: Iterable[CacheSpec], dtype: Dtype) -> CacheSize:
    """Of these layers' caches in one dtype."""
    per_layer = [(cache.token_bytes(dtype), cache.row_bytes(dtype)) for cache in caches]
    return CacheSize(sum(token for token, _ in per_layer), sum(row for _, row in per_layer))
