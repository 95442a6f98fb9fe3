"""How the kernels walk an encoded matrix: in steps of how many columns, and in what blocks of bytes; what they read.

Says which matrices have a kernel. Needs no Triton, so that this can be asked anywhere.
"""

import math
from collections.abc import Mapping
from functools import cache
from typing import TypeAlias

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

    @property
    def width(self) -> int:
        """Numbers that a plane holds of a row."""
        return self.parts * self.length * (2 if self.form == "group4" else 1)


@attrs.frozen(eq=False)
class TileSource:
    """A matrix as kernels read it. `order` is left to the input."""

    layout: TileLayout
    rows: int
    columns: int
    data: Tensor  # uint8 [rows, bytes of a row]
    scales: Tensor  # [tiles down, groups]; of blocks: their bytes as float16
    extra: Tensor  # zeros, minima or table; where there is none, something that is not read
    group_rows: int = 1  # rows that share a scale

    @property
    def n_steps(self) -> int:
        return -(-self.columns // self.layout.span)

    @property
    def n_groups(self) -> int:
        return self.scales.shape[1]


Sizes: TypeAlias = tuple[int, int, int, int]

_BLOCKS: Mapping[str, Sizes] = {  # span, planes, parts, length
    "Q4_K": (256, 2, 4, 32),
    "Q5_K": (256, 2, 4, 32),
    "Q6_K": (256, 2, 8, 16),
    "Q2_K": (256, 4, 4, 16),
    "Q3_K": (256, 4, 4, 16),
    "IQ4_XS": (256, 2, 8, 16),
    "Q5_0": (128, 2, 4, 16),
    "Q5_1": (128, 2, 4, 16),
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
    )
    data = matrix.codes.view(torch.uint8)
    return _source(layout, matrix, data, matrix.scales, extra)


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
    layout = TileLayout(name, "", *_BLOCKS[name])
    halves = matrix.data.view(torch.float16)
    extra = iq4_table(matrix.device) if name == "IQ4_XS" else halves
    return _source(layout, matrix, matrix.data, halves, extra)


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
