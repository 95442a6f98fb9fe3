"""Small floats and tables with a scale per group: float8, MXFP4, NVFP4, and the nf4 of bitsandbytes.

Codes of 4 bits are places in a table of 16 numbers. Where scales have a scale themselves, it goes into the table
(NVFP4), or the scales are worked out (nf4). Knows no file.
"""

import json
import math
from typing import Any

import torch
from torch import Tensor

from hydra.kernels.weights.encoded.block_decoders import half_of_exponent
from hydra.kernels.weights.encoded.code_bytes import row_pieces
from hydra.kernels.weights.encoded.encoded_matrix import Float8Matrix, GroupedMatrix
from hydra.kernels.weights.encoded.published_matrix import PLAIN_NAMES, PublishedMatrix
from hydra.protocol.model.encoding import TensorShape
from hydra.protocol.refusal import refuse

_FLOAT4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
STATE_BYTES_MAX = 4096  # of bitsandbytes' JSON; it writes some 200


def unpack_float8(matrix: PublishedMatrix) -> Float8Matrix:
    """A scale for each tile, each row or all of it; as power of two (E8M0) in some."""
    group_rows = min(matrix.encoding.group_rows or matrix.rows, matrix.rows)
    shape = (-(-matrix.rows // group_rows), matrix.groups)
    scales = matrix.side("scale", (*PLAIN_NAMES, "F8_E8M0"), shape).to(torch.float32)
    codes = matrix.raw["values"].view(torch.float8_e4m3fn).view(matrix.rows, matrix.columns)
    return Float8Matrix(
        codes=codes, scales=scales.contiguous(), group_rows=group_rows, group_columns=matrix.group_columns
    )


def unpack_mxfp4(matrix: PublishedMatrix) -> GroupedMatrix:
    """Neighbours share a byte, as gpt-oss and compressed-tensors have them; the scale is a power of two.

    Half of it is kept and the table is doubled: so even the largest exponent gives numbers and not infinity alone.
    """
    exponents = matrix.side("scale", ("U8", "F8_E8M0"), (matrix.rows, matrix.groups)).view(torch.uint8)
    table = _float4_table(exponents.device) * 2
    return _looked_up(matrix, matrix.raw["values"], half_of_exponent(exponents), table)


def unpack_nvfp4(matrix: PublishedMatrix) -> GroupedMatrix:
    """compressed-tensors': the scales are float8 and have one divisor.

    The divisor is applied to the table, the reference applies it to the scales: a number may differ by its last bit.
    """
    scales = matrix.side("scale", ("F8_E4M3",), (matrix.rows, matrix.groups)).to(torch.float16)  # which holds them all
    divisor = matrix.side("second_scale", ("F32",), ())
    return _looked_up(matrix, matrix.raw["values"], scales, _float4_table(scales.device) / divisor)


def unpack_nf4(matrix: PublishedMatrix) -> GroupedMatrix:
    """bitsandbytes': the first of two neighbours in a byte's high half, groups along all rows as if they were one."""
    if matrix.columns % matrix.group_columns:
        raise refuse("unsupported", f"{matrix.name}: rows of {matrix.columns} columns are no whole groups of "
                     f"{matrix.group_columns}")  # fmt: skip
    state = _checked_state(matrix)
    table = matrix.side("table", ("F32",), (16,))
    if matrix.encoding.nested:
        scales = _nested_scales(matrix, state)
    else:
        scales = matrix.side("scale", ("F32",), (matrix.rows * matrix.groups,), (matrix.rows, matrix.groups))
    stored = matrix.raw["values"].view(matrix.rows, -1)
    codes = torch.empty_like(stored)
    for piece in row_pieces(matrix.rows, matrix.columns):
        codes[piece] = (stored[piece] << 4) | (stored[piece] >> 4)
    return _looked_up(matrix, codes, scales.view(matrix.rows, matrix.groups), table)


def _looked_up(matrix: PublishedMatrix, codes: Tensor, scales: Tensor, table: Tensor) -> GroupedMatrix:
    return GroupedMatrix(
        codes=codes.view(matrix.rows, -1), scales=scales, bits=4, group_columns=matrix.group_columns, table=table
    )


def _float4_table(device: torch.device) -> Tensor:
    return torch.tensor(_FLOAT4_VALUES, dtype=torch.float32, device=device)


def _nested_scales(matrix: PublishedMatrix, state: dict[str, Any]) -> Tensor:
    """Each scale is a place in a table, times a scale of its own group, plus an offset."""
    count, group = matrix.rows * matrix.groups, _whole_number(matrix, state, "nested_blocksize")
    offset = state.get("nested_offset")
    if not isinstance(offset, int | float) or isinstance(offset, bool) or not math.isfinite(offset):
        raise matrix.bad("its state in JSON has no finite nested_offset")
    places = matrix.side("scale", ("U8",), (count,), (matrix.rows, matrix.groups)).reshape(-1)
    second = matrix.side("second_scale", ("F32",), (-(-count // group),)).reshape(-1)
    scales = matrix.side("second_table", ("F32",), (256,))[places.to(torch.int32)]
    return scales.mul_(second.repeat_interleave(group)[:count]).add_(offset)


def _checked_state(matrix: PublishedMatrix) -> dict[str, Any]:
    """What bitsandbytes wrote about the matrix, once it agrees with what is known; it may be missing where no number of
    it is needed.
    """
    if not matrix.encoding.nested and not matrix.has("second_offset"):
        return {}
    length = matrix.raw["second_offset"].numel() if matrix.has("second_offset") else 0
    if length > STATE_BYTES_MAX:
        raise matrix.bad(f"its state in JSON has {length} bytes, and at most {STATE_BYTES_MAX} are read")
    text = bytes(matrix.side("second_offset", ("U8",), (length,)).reshape(-1).tolist())
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise matrix.bad(f"its state in JSON is none: {type(error).__name__}") from error
    if not isinstance(state, dict):
        raise matrix.bad("its state in JSON is no object")
    if state.get("quant_type") != "nf4":
        raise refuse("unsupported", f"{matrix.name}: its state in JSON says {str(state.get('quant_type'))[:40]!r}; of "
                     "bitsandbytes only nf4 is read")  # fmt: skip
    shape: TensorShape = (matrix.rows, matrix.columns)
    if state.get("shape") != list(shape):
        raise matrix.bad(f"its state in JSON has shape {str(state.get('shape'))[:40]}, the model's config {shape}")
    if _whole_number(matrix, state, "blocksize") != matrix.encoding.group_columns:
        raise matrix.bad(f"its state in JSON has groups of {state['blocksize']}, not of {matrix.group_columns}")
    return state


def _whole_number(matrix: PublishedMatrix, state: dict[str, Any], name: str) -> int:
    number = state.get(name)
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= 1 << 16:
        raise matrix.bad(f"its state in JSON has no {name}")
    return number
