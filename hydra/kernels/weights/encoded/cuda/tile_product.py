"""A few rows of input times an encoded matrix whose tiles are decoded on the way, and a matrix decoded as a whole.

The columns are divided into splits, summed side by side and then in their order by a second kernel: nothing is added
atomically, so a product has the same bits whenever it is computed on a device. How a matrix is divided hangs on the
matrix alone. Rows are made up to 16, 32 or 64, and then a row's bits do not hang on what the others hold, or on how
many of them there are. A lone row is multiplied number by number where a device has no units for tiles. Nothing waits
for the host: launches can be captured and replayed. Triton kernels. Knows no layer and no model.
"""

import attrs
import torch
import triton
import triton.language as tl
from torch import Tensor

from hydra.kernels.weights.encoded.cuda.tile_decoders import tile_columns, tile_numbers
from hydra.kernels.weights.encoded.cuda.tile_layout import TileSource

EXPERT_ROWS = 16  # of one expert's that a program multiplies
_TILE = 64  # rows of the matrix that a program has
_TILE_LONE = 32  # the same, for one row of input
_PROGRAMS = 4  # wanted per processor
_STEPS_MIN = 4  # of a split
_SPLITS_MAX = 32
_MANY = 64  # rows of input that leave less shared memory
_SUMMED = 1024  # numbers that a program of the second pass has


@attrs.frozen(eq=False)
class TileProduct:
    """With one matrix, or with experts that lie one below the other in it."""

    source: TileSource
    processors: int  # of the device
    multiplies_tiles: bool = True  # the device has units for it
    upcasts: bool = False  # numbers are multiplied in float32, where a device cannot in the dtype of the input
    n_experts: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, columns] of up to `ROWS_MAX` rows times the matrix's transpose: [n, rows]."""
        padded = max(16, triton.next_power_of_2(x.shape[0]))
        if x.shape[0] == 1 and not self.multiplies_tiles:
            padded = 1
        return self._launch(x, x.shape[0], padded, None, None)

    def by_expert(self, x: Tensor, experts: Tensor, origin: Tensor | None = None) -> Tensor:
        """[n, rows of an expert]: row i is row `origin[i]` of x (without `origin`, row i) times the matrix of expert
        `experts[i]`. `experts` [n] ascends."""
        return self._launch(x, experts.shape[0], EXPERT_ROWS, experts, origin)

    def decode(self, first: int, end: int, dtype: torch.dtype) -> Tensor:
        """Rows `first` to `end`, [rows, columns], as EncodedMatrix.decode has them."""
        source, order = self.source, self.source.order
        out = torch.empty(end - first, source.columns, dtype=dtype, device=source.data.device)
        _decode[(triton.cdiv(end - first, _TILE), source.n_steps)](
            out,
            source.data,
            source.scales,
            source.extra,
            source.scales if order is None else order,
            first,
            end,
            source.columns,
            source.data.shape[1],
            source.n_groups,
            source.group_rows,
            **source.constants(),
            TILE=_TILE,
            ORDERED=order is not None,
            enable_fp_fusion=False,
        )
        return out

    def _launch(self, x: Tensor, n: int, padded: int, experts: Tensor | None, origin: Tensor | None) -> Tensor:
        source, layout = self.source, self.source.layout
        rows, tile = source.rows // self.n_experts, _TILE_LONE if padded == 1 else _TILE
        if source.order is not None:
            x = x.index_select(1, source.order)
        elif x.stride(1) != 1:
            x = x.contiguous()
        splits, steps = self._splits(triton.cdiv(rows, _TILE))
        out = torch.empty(n, rows, dtype=x.dtype, device=x.device)
        sums = out if splits == 1 else torch.empty(splits, n, rows, dtype=torch.float32, device=x.device)
        _multiply[(triton.cdiv(rows, tile), splits, n if experts is not None else 1)](
            x,
            sums,
            source.data,
            source.scales,
            source.extra,
            x if experts is None else experts,
            x if origin is None else origin,
            n,
            rows,
            source.columns,
            x.stride(0),
            source.data.shape[1],
            source.n_groups,
            source.group_rows,
            steps,
            source.n_steps,
            **source.constants(),
            TILE=tile,
            PADDED=padded,
            SORTED=0 if experts is None else triton.next_power_of_2(n),
            MOVED=origin is not None,
            UPCAST=self.upcasts,
            num_warps=layout.warps,
            num_stages=layout.stages if padded < _MANY else min(2, layout.stages),
            enable_fp_fusion=False,
        )
        if splits > 1:
            grid = (triton.cdiv(n * rows, _SUMMED),)
            _sum_splits[grid](sums, out, n * rows, splits, BLOCK=_SUMMED, enable_fp_fusion=False)
        return out

    def _splits(self, tiles: int) -> tuple[int, int]:
        """(how many, steps of each): enough programs for the device's processors, in splits that are not empty."""
        wanted = min(_SPLITS_MAX, triton.cdiv(_PROGRAMS * self.processors, tiles), self.source.n_steps // _STEPS_MIN)
        steps = triton.cdiv(self.source.n_steps, max(1, wanted))
        return triton.cdiv(self.source.n_steps, steps), steps


@triton.jit(do_not_specialize=["n", "steps", "n_steps"])
def _multiply(
    x, out, data, scales, extra, experts, origin, n, rows, columns, x_stride, row_bytes, n_groups, group_rows,
    steps, n_steps, FORM: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr, SPAN: tl.constexpr,
    PLANES: tl.constexpr, PARTS: tl.constexpr, LENGTH: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr,
    TILE: tl.constexpr, PADDED: tl.constexpr, SORTED: tl.constexpr, MOVED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One split of a tile of the matrix, times all rows of input, or those from one on that have the same expert."""
    split = tl.program_id(1)
    place = tl.arange(0, PADDED)
    row = tl.minimum(tl.program_id(0) * TILE + tl.arange(0, TILE), rows - 1).to(tl.int64)
    if SORTED > 0:
        first = tl.program_id(2)
        expert = tl.load(experts + first)
        every = tl.arange(0, SORTED)
        before = tl.load(experts + every, mask=every < n, other=expert) < expert
        if (first - tl.sum(before.to(tl.int32), 0)) % PADDED != 0:
            return  # a row among those of another program
        place += first
        mine = tl.load(experts + place, mask=place < n, other=-1) == expert
        row += expert.to(tl.int64) * rows
    else:
        mine = place < n
    x_row = tl.load(origin + place, mask=mine, other=0) if MOVED else place
    at = x + (x_row.to(tl.int64) * x_stride)[:, None, None]

    total = tl.zeros((TILE, WIDTH if PADDED == 1 else PADDED), tl.float32)
    for step in range(split * steps, tl.minimum((split + 1) * steps, n_steps)):
        for plane in tl.static_range(PLANES):
            numbers = tile_numbers(
                data, scales, extra, row, step, columns, row_bytes, n_groups, group_rows,
                FORM, KIND, GROUP, plane, SPAN, PARTS, LENGTH, EVEN,
            )  # fmt: skip
            numbers = tl.reshape(numbers, (TILE, WIDTH)).to(x.dtype.element_ty)
            column = tile_columns(step, FORM, plane, SPAN, PARTS, LENGTH)[None, :, :]
            there = mine[:, None, None] if EVEN else mine[:, None, None] & (column < columns)
            given = tl.reshape(tl.load(at + column, mask=there, other=0.0), (PADDED, WIDTH))
            if PADDED == 1:
                total = tl.fma(numbers.to(tl.float32), tl.broadcast_to(given.to(tl.float32), (TILE, WIDTH)), total)
            elif UPCAST:
                total = tl.dot(numbers.to(tl.float32), tl.trans(given.to(tl.float32)), total, input_precision="ieee")
            else:
                total = tl.dot(numbers, tl.trans(given), total, input_precision="ieee")
    if PADDED == 1:
        total = tl.sum(total, 1)[:, None]
    line = tl.program_id(0) * TILE + tl.arange(0, TILE)
    target = out + (split * n + place)[None, :].to(tl.int64) * rows + line[:, None]
    tl.store(target, total.to(out.dtype.element_ty), mask=(line < rows)[:, None] & mine[None, :])


@triton.jit(do_not_specialize=["n", "splits"])
def _sum_splits(sums, out, n, splits, BLOCK: tl.constexpr):
    """Of each number, one split after the other."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        total += tl.load(sums + split * n + at, mask=at < n, other=0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=at < n)


@triton.jit(do_not_specialize=["first", "end"])
def _decode(
    out, data, scales, extra, order, first, end, columns, row_bytes, n_groups, group_rows, FORM: tl.constexpr,
    KIND: tl.constexpr, GROUP: tl.constexpr, SPAN: tl.constexpr, PLANES: tl.constexpr, PARTS: tl.constexpr,
    LENGTH: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr, TILE: tl.constexpr, ORDERED: tl.constexpr,
):  # fmt: skip
    """A step of a tile of the matrix."""
    step = tl.program_id(1)
    line = tl.program_id(0) * TILE + tl.arange(0, TILE)
    row = tl.minimum(first + line, end - 1).to(tl.int64)
    for plane in tl.static_range(PLANES):
        numbers = tile_numbers(
            data, scales, extra, row, step, columns, row_bytes, n_groups, group_rows,
            FORM, KIND, GROUP, plane, SPAN, PARTS, LENGTH, EVEN,
        )  # fmt: skip
        column = tile_columns(step, FORM, plane, SPAN, PARTS, LENGTH)
        inside = (line < end - first)[:, None, None] & (column < columns)[None, :, :]
        if ORDERED:
            column = tl.load(order + column, mask=column < columns, other=0)
        target = out + (line.to(tl.int64) * columns)[:, None, None] + column[None, :, :]
        tl.store(target, numbers.to(out.dtype.element_ty), mask=inside)
