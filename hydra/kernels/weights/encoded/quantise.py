"""A matrix of full precision made into one of 8 or 4 bits while it is loaded: groups of 32 columns, round to nearest.

For each group a few scales are tried, the plain one among them, and the one with the least squared error is kept; so no
group is worse than with the plain one. The same matrix always gives the same codes. Knows no file and no model.
"""

import torch
from torch import Tensor

from hydra.kernels.weights.encoded.code_bytes import paired, row_pieces
from hydra.kernels.weights.encoded.encoded_matrix import GroupedMatrix
from hydra.protocol.model.encoding import QUANTISED_COLUMNS
from hydra.protocol.refusal import refuse

_SHRINKS = {4: (1.0, 0.95, 0.9), 8: (1.0,)}  # of the scale that takes the largest number to the end of the range
_FLOAT16_LARGEST, _FLOAT16_FINE = 65504.0, 2.0**-16  # below, a float16 has fewer bits than a bfloat16


def quantise(matrix: Tensor, bits: int, *, name: str) -> GroupedMatrix:
    """`bits` are 4 or 8; `name` is that of the tensor, for people. Refuses: bad_model for numbers that are not finite,
    unsupported for columns that are no whole bytes.
    """
    rows, columns = matrix.shape
    if columns * bits % 8:
        raise refuse("unsupported", f"{name}: {columns} columns of {bits} bits are no whole bytes; load it as it is")
    groups = -(-columns // QUANTISED_COLUMNS)
    largest = matrix.new_empty(rows, groups, dtype=torch.float32)  # of each group, in magnitude
    for piece in row_pieces(rows, columns):
        largest[piece] = _groups_of(matrix[piece], groups).abs().amax(2)
    if not bool(torch.isfinite(largest).all()):
        raise refuse("bad_model", f"{name} holds NaN or infinity and cannot be quantised; the file is damaged")
    dtype = _scale_dtype(largest / (1 << (bits - 1)))
    scales = torch.empty_like(largest, dtype=dtype)
    codes = torch.empty(rows, columns * bits // 8, dtype=torch.int8 if bits == 8 else torch.uint8, device=matrix.device)
    for piece in row_pieces(rows, columns):
        scale, code = _best(_groups_of(matrix[piece], groups), largest[piece], bits, dtype)
        scales[piece] = scale
        whole = code.view(code.shape[0], -1)[:, :columns]
        codes[piece] = whole.to(torch.int8) if bits == 8 else paired(whole.add(8).to(torch.uint8))
    return GroupedMatrix(codes=codes, scales=scales, bits=bits, group_columns=QUANTISED_COLUMNS)


def _groups_of(numbers: Tensor, groups: int) -> Tensor:
    """float32 [rows, groups, 32], the last group of a row filled up with zeros, which cost no error."""
    wide = numbers.to(torch.float32)
    missing = groups * QUANTISED_COLUMNS - wide.shape[1]
    return torch.nn.functional.pad(wide, (0, missing)).view(wide.shape[0], groups, QUANTISED_COLUMNS)


def _scale_dtype(scales: Tensor) -> torch.dtype:
    """float16, as GGUF has it, unless some scale is too large or too small for it."""
    too_small = (scales > 0) & (scales < _FLOAT16_FINE)
    return torch.bfloat16 if bool(((scales > _FLOAT16_LARGEST) | too_small).any()) else torch.float16


def _best(numbers: Tensor, largest: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A scale [rows, groups] in `dtype` and codes [rows, groups, 32] in float32."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    scale, code, error = _tried(numbers, largest / high, low, high, dtype)
    peak = numbers.gather(2, numbers.abs().argmax(2, keepdim=True)).squeeze(2) / low
    for shrink in _SHRINKS[bits]:
        scale, code, error = _better((scale, code, error), _tried(numbers, peak * shrink, low, high, dtype))
    # The scale that fits these codes best, and the codes that fit it.
    fitting = (numbers * code).sum(2) / code.square().sum(2).clamp_(min=1)
    scale, code, _ = _better((scale, code, error), _tried(numbers, fitting, low, high, dtype))
    return scale, code


def _tried(numbers: Tensor, scale: Tensor, low: int, high: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The scale as it is kept, the nearest codes, and each group's squared error."""
    kept = scale.to(dtype)
    wide = kept.to(torch.float32).unsqueeze(2)
    code = (numbers / wide.masked_fill(wide == 0, 1)).round_().clamp_(low, high)
    return kept, code, torch.addcmul(numbers, code, wide, value=-1).square_().sum(2)


def _better(one: tuple[Tensor, Tensor, Tensor], other: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """By group the one with less error; of equals the first."""
    is_better = other[2] < one[2]
    scale, error = torch.where(is_better, other[0], one[0]), torch.where(is_better, other[2], one[2])
    return scale, torch.where(is_better.unsqueeze(2), other[1], one[1]), error
