"""Paged attention over ragged rows: new keys and values go into the pool, then each row attends to all of itself.

`plan_step` does the integer work once per step; `attend` then runs once per layer. A row whose blocks lie in one
ascending run is read in place; any other is gathered. Knows block tables and positions, no model and no weights.
"""

from collections.abc import Sequence

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hydra.kernels.kv_pool import LayerCache
from hydra.kernels.tensors import put
from hydra.protocol.batch import Batch, OpenRow

_sdpa = functional.scaled_dot_product_attention


@attrs.frozen(eq=False)
class RowSpan:
    """One row's part of a step: tokens [start, start + length) of the batch, attending to `total` positions."""

    start: int
    length: int
    total: int
    first_slot: int  # where the row's first block begins, and with it all of the row if `blocks` is None
    blocks: Tensor | None  # to be gathered
    mask: Tensor | None  # additive [length, total]; None where none or the plain causal one will do


@attrs.frozen(eq=False)
class StepPlan:
    """Where a step's tokens stand and where their keys and values go, the same for every layer."""

    positions: Tensor  # [n_tokens] int64
    slots: Tensor | int  # of each token; an int when they are one ascending run
    spans: tuple[RowSpan, ...]


def plan_step(
    batch: Batch, rows: Sequence[OpenRow], block_size: int, dtype: torch.dtype, device: torch.device
) -> StepPlan:
    """Raises IndexError when a row's block table does not reach its positions."""
    spans: list[RowSpan] = []
    positions: list[int] = []
    slots: list[int] = []
    for row, position, length in zip(rows, batch.position.tolist(), batch.length.tolist(), strict=True):
        if not (position >= 0 and length > 0):
            raise ValueError(f"row {row.row} cannot run {length} tokens from position {position}")
        total = position + length
        table = row.blocks
        if total > len(table) * block_size:
            raise IndexError(f"row {row.row} has {len(table)} blocks and needs room for {total} tokens")
        spans.append(
            _span(len(positions), position, length, table[: -(-total // block_size)], block_size, dtype, device)
        )
        positions.extend(range(position, total))
        slots.extend([table[at // block_size] * block_size + at % block_size for at in range(position, total)])
    if len(positions) != batch.n_tokens:
        raise ValueError(f"rows of {len(positions)} tokens in a batch of {batch.n_tokens}")
    where = slots[0] if slots and _ascending(slots) else put(np.array(slots, dtype=np.int64), device)
    return StepPlan(put(np.array(positions, dtype=np.int64), device), where, tuple(spans))


def _ascending(numbers: list[int]) -> bool:
    """Whether they are consecutive; the first look rejects almost every other list."""
    first = numbers[0]
    return numbers[-1] - first == len(numbers) - 1 and numbers == list(range(first, first + len(numbers)))


def _span(
    start: int, position: int, length: int, table: list[int], block_size: int, dtype: torch.dtype, device: torch.device
) -> RowSpan:
    mask = None
    if position > 0 and length > 1:
        mask = torch.full((length, position + length), float("-inf"), dtype=dtype, device=device).triu_(position + 1)
    if _ascending(table):
        return RowSpan(start, length, position + length, table[0] * block_size, None, mask)
    return RowSpan(
        start, length, position + length, table[0] * block_size, put(np.array(table, dtype=np.int64), device), mask
    )


def attend(query: Tensor, key: Tensor, value: Tensor, cache: LayerCache, plan: StepPlan) -> Tensor:
    """query [n, heads, d], key and value [n, kv heads, d]; returns [n, heads * d]."""
    if isinstance(plan.slots, int):
        end = plan.slots + key.shape[0]
        cache.key_slots[plan.slots : end] = key
        cache.value_slots[plan.slots : end] = value
    else:
        cache.key_slots.index_copy_(0, plan.slots, key)
        cache.value_slots.index_copy_(0, plan.slots, value)
    rows = [_attend_row(query, cache, span) for span in plan.spans]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _attend_row(query: Tensor, cache: LayerCache, span: RowSpan) -> Tensor:
    if span.blocks is None:
        key = cache.key_slots[span.first_slot : span.first_slot + span.total]
        value = cache.value_slots[span.first_slot : span.first_slot + span.total]
    else:
        key = cache.keys.index_select(0, span.blocks).flatten(0, 1)[: span.total]
        value = cache.values.index_select(0, span.blocks).flatten(0, 1)[: span.total]
    key, value = key.transpose(0, 1).unsqueeze(0), value.transpose(0, 1).unsqueeze(0)
    if span.length == 1:  # the heads that share a key act as so many queries of one head: no mask, no expansion
        single = query[span.start].view(1, key.shape[1], -1, query.shape[2])
        return _sdpa(single, key, value).reshape(1, -1)
    several = query[span.start : span.start + span.length].transpose(0, 1).unsqueeze(0)
    mixed = _sdpa(several, key, value, attn_mask=span.mask, is_causal=span.mask is None, enable_gqa=True)
    return mixed.squeeze(0).transpose(0, 1).reshape(span.length, -1)
