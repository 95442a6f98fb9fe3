"""Raw bytes of a published matrix to the form that is computed with: the table of schemes, and GGUF's blocks.

Decoded, the forms are the numbers that each scheme's own library decodes, in the dtype of the scales to the last bit;
NVFP4 may differ in it. What a form needs no other layout for is not copied: it shares memory with the bytes given.
Content that contradicts itself is refused; scales of NaN are data. Knows no file.
"""

from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor

from hydra.kernels.weights.encoded.block_decoders import IQ4_VALUES, MXFP4_DOUBLED, half_of_exponent
from hydra.kernels.weights.encoded.code_bytes import paired_halves, row_pieces
from hydra.kernels.weights.encoded.encoded_matrix import EncodedMatrix, GroupedMatrix
from hydra.kernels.weights.encoded.published_matrix import PublishedMatrix
from hydra.kernels.weights.encoded.unpack_float import unpack_float8, unpack_mxfp4, unpack_nf4, unpack_nvfp4
from hydra.kernels.weights.encoded.unpack_integer import unpack_awq, unpack_gptq, unpack_int8, unpack_packed
from hydra.protocol.model.encoding import BLOCK_ENCODINGS, Encoding, GroupEncoding, GroupScheme, TensorShape
from hydra.protocol.model.model_spec import WeightSide

UNPACKED_BLOCKS = frozenset({"Q4_0", "Q4_1", "Q8_0", "IQ4_NL", "MXFP4"})
_TABLES: Mapping[str, tuple[int, ...]] = {"IQ4_NL": IQ4_VALUES, "MXFP4": MXFP4_DOUBLED}


@attrs.frozen
class _Scheme:
    bits: tuple[int, ...]
    unpack: Callable[[PublishedMatrix], EncodedMatrix]
    sides: tuple[WeightSide, ...] = ("scale",)
    nested_sides: tuple[WeightSide, ...] = ()
    has_zeros: bool = False

    def known_sides(self, encoding: GroupEncoding) -> tuple[WeightSide, ...]:
        zero: tuple[WeightSide, ...] = ("zero",) if self.has_zeros and encoding.zero != "none" else ()
        return (*self.sides, *zero, *(self.nested_sides if encoding.nested else ()), "shape")


_SCHEMES: Mapping[GroupScheme, _Scheme] = {
    "packed": _Scheme((4, 8), unpack_packed, ("scale", "order"), has_zeros=True),
    "gptq": _Scheme((4, 8), unpack_gptq, ("scale", "order"), has_zeros=True),
    "awq": _Scheme((4,), unpack_awq, has_zeros=True),
    "int8": _Scheme((8,), unpack_int8, has_zeros=True),
    "float8": _Scheme((8,), unpack_float8),
    "mxfp4": _Scheme((4,), unpack_mxfp4),
    "nvfp4": _Scheme((4,), unpack_nvfp4, ("scale", "second_scale")),
    "nf4": _Scheme((4,), unpack_nf4, ("scale", "table", "second_offset"), ("second_scale", "second_table")),
}


def unpack_matrix(
    encoding: GroupEncoding,
    shape: tuple[int, int],
    raw: Mapping[WeightSide, Tensor],
    sides: Mapping[WeightSide, tuple[Encoding, TensorShape]],
    *,
    name: str,
) -> EncodedMatrix:
    """Of `shape`, rows out by columns in. `raw` has the bytes of the values and of each side (uint8, flat), `sides` how
    those are stored; `name` is that of file and tensor, for people. Refuses: bad_model, unsupported.
    """
    rows, columns = shape
    matrix = PublishedMatrix(name, encoding, rows, columns, raw, sides)
    scheme = _SCHEMES[encoding.scheme]
    matrix.check(scheme.bits, scheme.known_sides(encoding))
    return scheme.unpack(matrix)


def unpack_blocks(name: str, data: Tensor) -> GroupedMatrix:
    """uint8 [rows, bytes of a row] in one of `UNPACKED_BLOCKS`."""
    encoding = BLOCK_ENCODINGS[name]
    rows, groups = data.shape[0], data.shape[1] // encoding.block_bytes
    bits = 8 if name == "Q8_0" else 4
    codes = data.new_empty(rows, groups * 32 * bits // 8)
    scales = torch.empty(rows, groups, dtype=_scale_dtype(name), device=data.device)
    minima = torch.empty_like(scales) if name == "Q4_1" else None
    for piece in row_pieces(rows, groups * 32):
        blocks = data[piece].reshape(-1, encoding.block_bytes)
        shape = scales[piece].shape
        scales[piece] = _block_scales(name, blocks).view(shape)
        if minima is not None:
            minima[piece] = _float16(blocks, 2).view(shape)
        values = blocks[:, encoding.block_bytes - 4 * bits :]
        codes[piece] = (values if bits == 8 else paired_halves(values)).reshape(shape[0], -1)
    table = torch.tensor(_TABLES[name], dtype=torch.float32, device=data.device) if name in _TABLES else None
    signed = codes.view(torch.int8) if bits == 8 else codes
    return GroupedMatrix(codes=signed, scales=scales, bits=bits, group_columns=32, minima=minima, table=table)


def _scale_dtype(name: str) -> torch.dtype:
    return torch.bfloat16 if name == "MXFP4" else torch.float16


def _block_scales(name: str, blocks: Tensor) -> Tensor:
    return half_of_exponent(blocks[:, 0]) if name == "MXFP4" else _float16(blocks, 0)


def _float16(blocks: Tensor, first: int) -> Tensor:
    return blocks[:, first : first + 2].contiguous().view(torch.float16)
