"""One new token per row attends to its row's past: all rows of a step in one launch, read where their KV blocks lie.

A row's past is divided into splits, computed side by side by the running softmax of Milakov and Gimelshein
(arXiv:1805.02867) and then combined, as in flash-decoding (Dao et al., 2023): a few rows fill a device too. Everything
that differs between steps is read on the device, so that a launch can be captured once and replayed. Triton kernels,
for compute capability 8.0 and up. Knows slots and positions, no model and no pool.
"""

import attrs
import torch
import triton
import triton.language as tl
from torch import Tensor

from hydra.kernels.attention.paged_rows import PagedRows

_TILE_BYTES = 16384  # of keys held at once
_SPLITS_MAX = 32


@attrs.frozen(eq=False)
class PagedDecode:
    """A layer's way to mix: `scale` multiplies the scores, `softcap` (0: none) bends them below its size; `sinks` are
    one more score for each head, which has no value.
    """

    scale: float
    softcap: float
    sinks: Tensor | None  # float32 [heads]
    processors: int  # of the device: so many programs are wanted at least

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, rows: PagedRows) -> Tensor:
        """query [n, heads, d]; keys and values [slots, kv heads, d], contiguous; returns [n, heads * d]."""
        n, n_heads, width = query.shape
        n_kv_heads = keys.shape[1]
        group = n_heads // n_kv_heads
        splits = _splits(self.processors, n * n_kv_heads)
        parts = torch.empty(n, n_heads, splits, width, dtype=torch.float32, device=query.device)
        sums = torch.empty(2, n, n_heads, splits, dtype=torch.float32, device=query.device)
        width_padded = max(16, triton.next_power_of_2(width))
        _attend_split[(n, n_kv_heads, splits)](
            query,
            keys,
            values,
            rows.table,
            rows.first,
            rows.reach,
            parts,
            sums,
            self.scale,
            self.softcap,
            query.stride(0),
            query.stride(1),
            rows.table.stride(0),
            BLOCK=rows.block_size,
            KV_HEADS=n_kv_heads,
            GROUP=group,
            GROUP_PADDED=max(16, triton.next_power_of_2(group)),
            WIDTH=width,
            WIDTH_PADDED=width_padded,
            TILE=max(16, min(64, _TILE_BYTES // (width_padded * query.element_size()))),
            CAPPED=self.softcap > 0,
            PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        )
        out = torch.empty(n, n_heads * width, dtype=query.dtype, device=query.device)
        _combine[(n, n_heads)](
            parts,
            sums,
            sums if self.sinks is None else self.sinks,  # a pointer in any case
            out,
            SPLITS=splits,
            WIDTH=width,
            WIDTH_PADDED=width_padded,
            SINKS=self.sinks is not None,
        )
        return out


def _splits(processors: int, programs: int) -> int:
    """A power of two that brings the programs to about one per processor."""
    splits = 1
    while splits < _SPLITS_MAX and splits * programs < processors:
        splits *= 2
    return splits


@triton.jit
def _attend_split(
    query,
    keys,
    values,
    table,
    first,
    reach,
    parts,
    sums,
    scale,
    softcap,
    query_stride,
    head_stride,
    table_stride,
    BLOCK: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
    TILE: tl.constexpr,
    CAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One row, one key head with all heads that share it, one split of the past."""
    row = tl.program_id(0)
    key_head = tl.program_id(1)
    split = tl.program_id(2)
    splits = tl.num_programs(2)
    low = tl.load(first + row)
    high = tl.load(reach + row)
    share = tl.cdiv(tl.cdiv(high - low, splits), TILE) * TILE
    begin = low + split * share
    end = tl.minimum(begin + share, high)

    member = tl.arange(0, GROUP_PADDED)
    channel = tl.arange(0, WIDTH_PADDED)
    head = key_head * GROUP + member
    known = (member < GROUP)[:, None] & (channel < WIDTH)[None, :]
    at = row * query_stride + head[:, None] * head_stride + channel[None, :]
    asked = tl.load(query + at, mask=known, other=0.0)

    top = tl.full((GROUP_PADDED,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP_PADDED,), tl.float32)
    mixed = tl.zeros((GROUP_PADDED, WIDTH_PADDED), tl.float32)
    for start in range(begin, end, TILE):
        position = start + tl.arange(0, TILE)
        there = position < end
        block = tl.load(table + row * table_stride + position // BLOCK, mask=there, other=0).to(tl.int64)
        place = ((block * BLOCK + position % BLOCK) * KV_HEADS + key_head) * WIDTH
        inside = there[:, None] & (channel < WIDTH)[None, :]
        key = tl.load(keys + place[:, None] + channel[None, :], mask=inside, other=0.0)
        scores = tl.dot(asked, tl.trans(key), input_precision=PRECISION) * scale
        if CAPPED:
            scores = softcap * (2.0 / (1.0 + tl.exp(-2.0 * scores / softcap)) - 1.0)
        scores = tl.where(there[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        kept = tl.exp(top - higher)
        weights = tl.exp(scores - higher[:, None])
        value = tl.load(values + place[:, None] + channel[None, :], mask=inside, other=0.0)
        total = total * kept + tl.sum(weights, 1)
        mixed = mixed * kept[:, None] + tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
        top = higher

    n_heads = KV_HEADS * GROUP
    place = (row * n_heads + head) * splits + split
    tl.store(parts + place[:, None] * WIDTH + channel[None, :], mixed, mask=known)
    tl.store(sums + place, top, mask=member < GROUP)
    tl.store(sums + tl.num_programs(0) * n_heads * splits + place, total, mask=member < GROUP)


@triton.jit
def _combine(
    parts,
    sums,
    sinks,
    out,
    SPLITS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
    SINKS: tl.constexpr,
):
    """One head of one row: its splits weighed against each other. An empty split weighs nothing."""
    which = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    split = tl.arange(0, SPLITS)
    channel = tl.arange(0, WIDTH_PADDED)
    top = tl.load(sums + which * SPLITS + split)
    total = tl.load(sums + (tl.num_programs(0) * tl.num_programs(1) + which) * SPLITS + split)
    highest = tl.max(top, 0)
    if SINKS:
        sink = tl.load(sinks + tl.program_id(1))
        highest = tl.maximum(highest, sink)
    weights = tl.exp(top - highest)
    at = (which * SPLITS + split)[:, None] * WIDTH + channel[None, :]
    mixed = tl.load(parts + at, mask=(channel < WIDTH)[None, :], other=0.0)
    whole = tl.sum(total * weights, 0)
    if SINKS:
        whole += tl.exp(sink - highest)
    answer = tl.sum(mixed * weights[:, None], 0) / whole
    tl.store(out + which * WIDTH + channel, answer.to(out.dtype.element_ty), mask=channel < WIDTH)
