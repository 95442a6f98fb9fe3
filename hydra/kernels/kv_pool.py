"""The memory of the KV cache: per layer one tensor of keys and one of values, in blocks. Who owns a block is not known.

Blocks are touched only when written, so a large pool costs what is used of it (on the CPU).
"""

import attrs
import torch
from torch import Tensor

from hydra.protocol.batch import OpenRow


@attrs.define(eq=False)
class KvPool:
    """keys[layer] and values[layer] are [n_blocks * block_size, G, E]; slot = block * block_size + offset."""

    block_size: int
    n_blocks: int
    keys: dict[int, Tensor]
    values: dict[int, Tensor]

    @classmethod
    def make(
        cls,
        layers: list[int],
        n_blocks: int,
        block_size: int,
        heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> "KvPool":
        def fresh() -> dict[int, Tensor]:
            shape = (n_blocks * block_size, heads, head_dim)
            return {layer: torch.empty(shape, dtype=dtype, device=device) for layer in layers}

        return cls(block_size, n_blocks, fresh(), fresh())


@attrs.frozen(eq=False)
class RowSpan:
    """Where one row's tokens of this run lie in the batch, and where its whole past lies in the pool."""

    start: int  # first token in the batch
    length: int  # tokens in this run
    past: int  # tokens before them
    slots: Tensor | slice  # of tokens 0 .. past + length, in order; a slice where the blocks lie side by side

    @property
    def total(self) -> int:
        return self.past + self.length


def spans_of(rows: tuple[OpenRow, ...], lengths: list[int], block_size: int, device: torch.device) -> list[RowSpan]:
    """One span per row. `row.position` already counts this run's tokens."""
    spans: list[RowSpan] = []
    start = 0
    for row, length in zip(rows, lengths, strict=True):
        total = row.position
        spans.append(RowSpan(start, length, total - length, _slots(row.blocks, total, block_size, device)))
        start += length
    return spans


def _slots(blocks: list[int], total: int, block_size: int, device: torch.device) -> Tensor | slice:
    needed = -(-total // block_size)
    assert len(blocks) >= needed, f"{total} tokens do not fit {len(blocks)} blocks of {block_size}"
    first = blocks[0]
    if all(block == first + i for i, block in enumerate(blocks[:needed])):
        return slice(first * block_size, first * block_size + total)
    table = torch.tensor(blocks[:needed], dtype=torch.int64, device=device)
    offsets = torch.arange(block_size, device=device)
    return (table[:, None] * block_size + offsets).reshape(-1)[:total]
