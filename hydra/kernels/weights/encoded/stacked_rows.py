"""Encoded matrices of one input, one below the other: those of one kind become one, because one product is faster than
several. The numbers stay what they are. Knows no product.
"""

import math
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from hydra.kernels.weights.encoded.encoded_matrix import BlockMatrix, EncodedMatrix, Float8Matrix, GroupedMatrix


def stack_rows(matrices: Sequence[EncodedMatrix]) -> list[EncodedMatrix]:
    """As few matrices as possible with the same rows in the same order."""
    stacked: list[EncodedMatrix] = []
    alike: list[EncodedMatrix] = []
    for matrix in matrices:
        if alike and not _is_alike(alike[0], matrix):
            stacked.append(_stack(alike))
            alike = []
        alike.append(matrix)
    return [*stacked, _stack(alike)] if alike else stacked


def _is_alike(one: EncodedMatrix, other: EncodedMatrix) -> bool:
    """Whether they have everything but their rows in common."""
    if one.columns != other.columns or one.device != other.device:
        return False
    match one, other:
        case BlockMatrix(), BlockMatrix():
            return one.encoding == other.encoding
        case Float8Matrix(), Float8Matrix():
            return one.group_columns == other.group_columns
        case GroupedMatrix(), GroupedMatrix():
            return (
                (one.bits, one.group_columns) == (other.bits, other.group_columns)
                and all(
                    _is_same_kind(getattr(one, side), getattr(other, side))
                    for side in ("codes", "scales", "zeros", "minima")
                )
                and all(_is_equal(getattr(one, side), getattr(other, side)) for side in ("table", "order"))
            )
        case _:
            return False


def _is_same_kind(one: Tensor | None, other: Tensor | None) -> bool:
    return (one is None) == (other is None) and (one is None or other is None or one.dtype == other.dtype)


def _is_equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _stack(alike: Sequence[EncodedMatrix]) -> EncodedMatrix:
    first = alike[0]
    if len(alike) == 1:
        return first
    match first:
        case GroupedMatrix():
            return attrs.evolve(
                first,
                codes=_joined(alike, "codes"),
                scales=_joined(alike, "scales"),
                zeros=None if first.zeros is None else _joined(alike, "zeros"),
                minima=None if first.minima is None else _joined(alike, "minima"),
            )
        case BlockMatrix():
            return attrs.evolve(first, data=_joined(alike, "data"))
        case Float8Matrix():
            return _stack_float8([matrix for matrix in alike if isinstance(matrix, Float8Matrix)])
        case _:
            raise AssertionError(f"{type(first).__name__} has no way to be stacked")


def _joined(alike: Sequence[EncodedMatrix], side: str) -> Tensor:
    return torch.cat([getattr(matrix, side) for matrix in alike])


def _stack_float8(alike: Sequence[Float8Matrix]) -> Float8Matrix:
    """In tiles of the greatest height that all tiles and all matrices are multiples of."""
    heights = [min(matrix.group_rows, matrix.rows) for matrix in alike]
    height = math.gcd(*heights, *(matrix.rows for matrix in alike))
    scales = [
        matrix.scales.repeat_interleave(own // height, 0)[: matrix.rows // height]
        for matrix, own in zip(alike, heights, strict=True)
    ]
    # Types that torch cannot join are joined as the bytes they are.
    codes = torch.cat([matrix.codes.view(torch.uint8) for matrix in alike]).view(torch.float8_e4m3fn)
    return attrs.evolve(alike[0], codes=codes, scales=torch.cat(scales), group_rows=height)
