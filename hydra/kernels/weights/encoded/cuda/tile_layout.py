"""How the kernels walk an encoded matrix: in steps of how many columns, and in what blocks of bytes; what they read.

Says which matrices the kernels decode. Needs no Triton, so that it can be asked anywhere.
"""

import math
from collections.abc import Mapping
from functools import cache

import attrs
import torch
from torch import Tensor

from hydra.kernels.weights.encoded.encoded_matrix import BlockMatrix, EncodedMatrix, Float8Matrix, GroupedMatrix

_SPAN = 128  # columns of a step, where a format has no blocks of its own
_IQ4_TABLE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@attrs.frozen
class TileLayout:
    """Of a step: `planes` times `parts` of `length` bytes each. The names are those of `tile_numbers`."""

    form: str
    kind: str  # of GroupedMatrix: middle, zeros, minima or table
    span: int
    planes: int
    parts: int
    length: int
    group: int = 0  # columns that share a scale, where no block says it; 0: all of them
    warps: int = 4
    stages: int = 3  # of loads in flight

    @property
    def width(self) -> int:
        """Numbers that a plane holds of a row."""
        return self.parts * self.length * (2 if self.form == "group4" else 1)


@attrs.frozen(eq=False)
class TileSource:
    """A matrix as kernels read it."""

    layout: TileLayout
    rows: int
    columns: int
    data: Tensor  # uint8 [rows, bytes of a row]
    scales: Tensor  # [tiles down, groups]; of blocks: their bytes as float16
    extra: Tensor  # zeros, minima or table; where there is none, something that is not read
    group_rows: int = 1  # rows that share a scale
    order: Tensor | None = None  # as GroupedMatrix.order

    @property
    def n_steps(self) -> int:
        return -(-self.columns // self.layout.span)

    @property
    def n_groups(self) -> int:
        return self.scales.shape[1]

    def constants(self) -> dict[str, str | int | bool]:
        """What a kernel is compiled for, by the names of its constants."""
        layout = self.layout
        return {
            "FORM": layout.form,
            "KIND": layout.kind,
            "GROUP": layout.group,
            "SPAN": layout.span,
            "PLANES": layout.planes,
            "PARTS": layout.parts,
            "LENGTH": layout.length,
            "WIDTH": layout.width,
            "EVEN": self.columns % layout.span == 0,
        }


_TABLE_STAGES = 1  # numbers that are looked up would be staged too, in more shared memory than there is
_BLOCKS: Mapping[str, TileLayout] = {
    layout.form: layout
    for layout in (
        TileLayout("Q4_K", "", 256, 2, 4, 32),
        TileLayout("Q5_K", "", 256, 2, 4, 32),
        TileLayout("Q6_K", "", 256, 2, 8, 16, warps=8),  # with 4 there are not enough registers
        TileLayout("Q2_K", "", 256, 4, 4, 16),
        TileLayout("Q3_K", "", 256, 4, 4, 16),
        TileLayout("IQ4_XS", "", 256, 2, 8, 16, stages=_TABLE_STAGES),
        TileLayout("Q5_0", "", 128, 2, 4, 16, warps=8),
        TileLayout("Q5_1", "", 128, 2, 4, 16),
    )
}


def tile_source(matrix: EncodedMatrix) -> TileSource | None:
    """None for what no kernel decodes."""
    match matrix:
        case GroupedMatrix():
            return _grouped(matrix)
        case Float8Matrix():
            return _float8(matrix)
        case BlockMatrix():
            return _blocks(matrix)
    return None


def _grouped(matrix: GroupedMatrix) -> TileSource | None:
    kind, extra = "middle", matrix.scales
    for name, side in (("zeros", matrix.zeros), ("minima", matrix.minima), ("table", matrix.table)):
        if side is not None:
            kind, extra = name, side
    whole = matrix.group_columns >= matrix.columns
    shared = _SPAN if whole else math.gcd(matrix.group_columns, _SPAN)
    per_byte = 8 // matrix.bits
    if shared < per_byte or (matrix.bits == 8 and kind in ("minima", "table")):
        return None
    layout = TileLayout(
        form=f"group{matrix.bits}",
        kind=kind,
        span=_SPAN,
        planes=1,
        parts=_SPAN // shared,
        length=shared // per_byte,
        group=0 if whole else matrix.group_columns,
        stages=_TABLE_STAGES if kind == "table" else 3,
    )
    source = _source(layout, matrix, matrix.codes.view(torch.uint8), matrix.scales, extra)
    return None if source is None else attrs.evolve(source, order=matrix.order)


def _float8(matrix: Float8Matrix) -> TileSource | None:
    whole = matrix.group_columns >= matrix.columns
    shared = _SPAN if whole else math.gcd(matrix.group_columns, _SPAN)
    group = 0 if whole else matrix.group_columns
    layout = TileLayout("float8", "", _SPAN, 1, _SPAN // shared, shared, group)
    codes = matrix.codes.view(torch.uint8)
    return _source(layout, matrix, codes, matrix.scales, matrix.scales, group_rows=matrix.group_rows)


def _blocks(matrix: BlockMatrix) -> TileSource | None:
    name = matrix.encoding.name
    if name not in _BLOCKS:
        return None
    halves = matrix.data.view(torch.float16)
    extra = iq4_table(matrix.device) if name == "IQ4_XS" else halves
    return _source(_BLOCKS[name], matrix, matrix.data, halves, extra)


def _source(
    layout: TileLayout, matrix: EncodedMatrix, data: Tensor, scales: Tensor, extra: Tensor, group_rows: int = 1
) -> TileSource | None:
    """None where rows do not lie one behind the other, as kernels count on."""
    if not (data.is_contiguous() and scales.is_contiguous() and extra.is_contiguous()):
        return None
    return TileSource(layout, matrix.rows, matrix.columns, data, scales, extra, group_rows)


@cache
def iq4_table(device: torch.device) -> Tensor:
    """The sixteen values of IQ4_NL and IQ4_XS."""
    return torch.tensor(_IQ4_TABLE, dtype=torch.float32, device=device)
