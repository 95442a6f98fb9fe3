"""Paged attention over ragged rows: new keys and values go into the pool, then each row attends to its own past.

`plan_step` does the integer work once per step, for each kind of view that the layers of a slice have; an `Attend` then
runs once per layer. A row whose blocks lie in one ascending run is read in place; any other is gathered. Under a window
only the blocks that it reaches are read; those behind it stay in the pool. Where a device has a kernel for it, a step
of one token per row (see decode_step.py) is one call for all rows. Knows block tables and positions, no model and no
weights.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import attrs
import numpy as np
import torch
from torch import Tensor

from hydra.kernels.attention.host_decode import HostDecode
from hydra.kernels.attention.kv_pool import LayerCache
from hydra.kernels.attention.paged_rows import PagedRows
from hydra.kernels.attention.sdpa import Mix, after_the_past
from hydra.kernels.devices import processors, runs_triton
from hydra.kernels.native.library import native_library
from hydra.kernels.native.row_functions import serves
from hydra.kernels.tensors import to_device
from hydra.protocol.batch import Batch, OpenRow


@attrs.frozen
class View:
    """What a layer's tokens see: their last `window` positions (0: all), by SDPA or with every mask spelled out."""

    window: int = 0
    spelled_out: bool = False


@attrs.frozen(eq=False)
class RowSpan:
    """One row's part of a step: tokens [start, start + length) of the batch, attending to `reach` positions."""

    start: int
    length: int
    reach: int
    first_slot: int  # where the first position that is read lies, if `blocks` is None
    blocks: Tensor | None  # to be gathered
    skipped: int  # positions of the first gathered block that come before
    mask: Tensor | None  # additive [length, reach]; None where none or the square causal one will do
    alone: PagedRows | None = None  # of one token: the row as one of a decode step has it


@attrs.frozen(eq=False)
class StepPlan:
    """Where a step's tokens stand and where their keys and values go, the same for every layer; and what each view
    of the slice (in the order they were asked for) reads, row by row or, of a decode step, all rows at once.
    """

    positions: Tensor  # [n_tokens] int64
    slots: Tensor | int  # of each token; an int when they are one ascending run
    spans: tuple[tuple[RowSpan, ...], ...] = ()
    paged: tuple[PagedRows, ...] | None = None


@attrs.frozen(eq=False)
class _Row:
    """A row's numbers before they are seen under any view."""

    start: int
    position: int
    length: int
    table: list[int]
    ascending: bool


def plan_step(
    batch: Batch,
    rows: Sequence[OpenRow],
    block_size: int,
    views: Sequence[View],
    dtype: torch.dtype,
    device: torch.device,
    *,
    alone: bool = False,
) -> StepPlan:
    """`alone`: rows of one token attend as in a decode step, so that their bits do not depend on their company. Raises
    IndexError when a row's block table does not reach its positions.
    """
    seen: list[_Row] = []
    positions: list[int] = []
    slots: list[int] = []
    for row, position, length in zip(rows, batch.position.tolist(), batch.length.tolist(), strict=True):
        if not (position >= 0 and length > 0):
            raise ValueError(f"row {row.row} cannot run {length} tokens from position {position}")
        total = position + length
        table = row.blocks
        if total > len(table) * block_size:
            raise IndexError(f"row {row.row} has {len(table)} blocks and needs room for {total} tokens")
        table = table[: -(-total // block_size)]
        seen.append(_Row(len(positions), position, length, table, is_run(table)))
        positions.extend(range(position, total))
        slots.extend([table[at // block_size] * block_size + at % block_size for at in range(position, total)])
    if len(positions) != batch.n_tokens:
        raise ValueError(f"rows of {len(positions)} tokens in a batch of {batch.n_tokens}")
    where = slots[0] if slots and is_run(slots) else to_device(np.array(slots, dtype=np.int64), device)
    spans = tuple(tuple([_span(row, view, block_size, dtype, device, alone) for row in seen]) for view in views)
    return StepPlan(to_device(np.array(positions, dtype=np.int64), device), where, spans)


def is_run(numbers: list[int]) -> bool:
    """Whether they are consecutive; the first look rejects almost every other list."""
    first = numbers[0]
    return numbers[-1] - first == len(numbers) - 1 and numbers == list(range(first, first + len(numbers)))


def _span(row: _Row, view: View, block_size: int, dtype: torch.dtype, device: torch.device, alone: bool) -> RowSpan:
    total = row.position + row.length
    first = max(0, row.position + 1 - view.window) if view.window else 0  # the earliest that the first token sees
    if alone and row.length == 1:
        places = PagedRows(
            torch.tensor([row.table], dtype=torch.int32), torch.tensor([total]), torch.tensor([first]), block_size
        )
        return RowSpan(row.start, 1, total - first, 0, None, 0, None, places)
    narrow = view.window and total - first > view.window  # the later tokens do not see all that is read
    mask = None
    if row.length > 1 and (row.position > 0 or narrow or view.spelled_out):
        if device.type == "cuda" and not (narrow or view.spelled_out):
            mask = after_the_past(row.length, total - first)
        else:
            mask = _mask(row, first, view.window if narrow else 0, dtype, device)
    if row.ascending:
        slot = row.table[0] * block_size + first
        return RowSpan(row.start, row.length, total - first, slot, None, 0, mask)
    table = row.table[first // block_size :]
    blocks = to_device(np.array(table, dtype=np.int64), device)
    return RowSpan(row.start, row.length, total - first, 0, blocks, first % block_size, mask)


def _mask(row: _Row, first: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Minus infinity above each token's own position, and below its window."""
    reach = row.position + row.length - first
    mask = torch.full((row.length, reach), float("-inf"), dtype=dtype, device=device).triu_(row.position - first + 1)
    if window:
        below = torch.full((row.length, reach), float("-inf"), dtype=dtype, device=device)
        mask += below.tril_(row.position - first - window)
    return mask


# query [rows, heads, d] of one token each, keys and values [slots, kv heads, d]; returns [rows, heads * d]
Decode: TypeAlias = Callable[[Tensor, Tensor, Tensor, PagedRows], Tensor]


def attends_to_all(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether there is a kernel for steps of one token per row: all rows in one call."""
    return runs_triton(device) or serves(dtype, device)


def make_decode(
    scale: float, softcap: float | None, sinks: Tensor | None, dtype: torch.dtype, device: torch.device
) -> Decode | None:
    """`sinks` as in `make_sdpa`. None where there is no kernel for it."""
    library = native_library()
    if library is not None and serves(dtype, device):
        return HostDecode(library, scale, softcap or 0.0, sinks)
    if not runs_triton(device):
        return None
    from hydra.kernels.attention.paged_decode import PagedDecode  # only where there is a Triton

    return PagedDecode(scale, softcap or 0.0, sinks, processors(device))


@attrs.frozen(eq=False)
class Attend:
    """A layer's attention, chosen once: which of the plan's views it has, and how scores become weights."""

    view: int  # its place in the plan
    mix: Mix
    decode: Decode | None = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache, plan: StepPlan) -> Tensor:
        """query [n, heads, d], key and value [n, kv heads, d]; returns [n, heads * d]."""
        if isinstance(plan.slots, int):
            end = plan.slots + key.shape[0]
            cache.key_slots[plan.slots : end] = key
            cache.value_slots[plan.slots : end] = value
        else:
            cache.key_slots.index_copy_(0, plan.slots, key)
            cache.value_slots.index_copy_(0, plan.slots, value)
        if plan.paged is not None:
            assert self.decode is not None
            return self.decode(query, cache.key_slots, cache.value_slots, plan.paged[self.view])
        spans = plan.spans[self.view]
        if self.decode is None and len(spans) == query.shape[0]:  # every row is one token
            singles = _by_key(query, key.shape[1]).unbind(0)
            mixed = [self.mix(one, *_past(cache, span), None, False) for one, span in zip(singles, spans, strict=True)]
            return _joined(mixed).flatten(1)
        return _joined([self._attend_row(query, cache, span) for span in spans])

    def _attend_row(self, query: Tensor, cache: LayerCache, span: RowSpan) -> Tensor:
        own = query[span.start : span.start + span.length]
        if span.alone is not None:
            assert self.decode is not None
            return self.decode(own, cache.key_slots, cache.value_slots, span.alone)
        key, value = _past(cache, span)
        if span.length == 1:
            single = _by_key(own, key.shape[1]).squeeze(0)
            return self.mix(single, key, value, None, False).reshape(1, -1)
        mixed = self.mix(own.transpose(0, 1).unsqueeze(0), key, value, span.mask, True)
        return mixed.squeeze(0).transpose(0, 1).reshape(span.length, -1)


def _joined(rows: list[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _by_key(query: Tensor, n_kv_heads: int) -> Tensor:
    """[n, 1, kv heads, heads per key, d]: the heads that share a key act as so many queries of one head, which needs
    neither a mask nor an expansion as long as they are of one token.
    """
    return query.view(query.shape[0], 1, n_kv_heads, -1, query.shape[2])


def _past(cache: LayerCache, span: RowSpan) -> tuple[Tensor, Tensor]:
    """The keys and values a row attends to, each [1, kv heads, reach, d]."""
    if span.blocks is None:
        key = cache.key_heads.narrow(2, span.first_slot, span.reach)
        return key, cache.value_heads.narrow(2, span.first_slot, span.reach)
    end = span.skipped + span.reach
    key = cache.keys.index_select(0, span.blocks).flatten(0, 1)[span.skipped : end]
    value = cache.values.index_select(0, span.blocks).flatten(0, 1)[span.skipped : end]
    return key.transpose(0, 1).unsqueeze(0), value.transpose(0, 1).unsqueeze(0)
