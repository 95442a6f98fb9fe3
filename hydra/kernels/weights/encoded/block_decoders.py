"""What the bytes of GGUF's blocks mean, in plain torch operators on any device: the numbers in float32.

A block is some bytes of scales and some of codes. Codes narrower than a byte lie in runs: so many bytes hold as many
codes in their lowest bits, then as many in the next ones. Products of a scale and a code are exact in float32, so no
order of the operations gives other numbers. Knows no matrix and no product.
"""

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor

from hydra.protocol.model.encoding import BLOCK_ENCODINGS

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
MXFP4_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # with half of the block's scale


def decode_blocks(name: str, data: Tensor) -> Tensor:
    """uint8 [rows, bytes of a row] in the block encoding of this name to float32 [rows, columns]."""
    blocks = data.reshape(-1, BLOCK_ENCODINGS[name].block_bytes)
    return _DECODERS[name](blocks).reshape(data.shape[0], -1)


def bit_fields(data: Tensor, bits: int, run: int) -> Tensor:
    """Codes of uint8 [n, bytes], one per element, [n, codes]: each run of bytes holds as many codes in its lowest bits,
    then as many in the next.
    """
    runs = data.reshape(data.shape[0], -1, run)
    mask = (1 << bits) - 1
    return torch.stack([(runs >> shift) & mask for shift in range(0, 8, bits)], 2).view(data.shape[0], -1)


def half_of_exponent(exponents: Tensor) -> Tensor:
    """MXFP4's scale byte as half of the power of two that it means, as bfloat16, which holds all of them."""
    wide = exponents.to(torch.int16)
    return torch.where(wide < 2, 0x20 << wide.clamp(max=1), (wide - 1) << 7).view(torch.bfloat16)


@cache
def _table(values: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


def _looked_up(values: tuple[int, ...], codes: Tensor) -> Tensor:
    return _table(values, codes.device)[codes.to(torch.int32)]


def _float16(blocks: Tensor, first: int) -> Tensor:
    """The number at this byte of each block, float32 [blocks, 1]."""
    return blocks[:, first : first + 2].contiguous().view(torch.float16).to(torch.float32)


def _floats(codes: Tensor, groups: int = 1) -> Tensor:
    return codes.to(torch.float32).view(codes.shape[0], groups, -1)


def _q4_0(blocks: Tensor) -> Tensor:
    """A scale, 32 codes."""
    return bit_fields(blocks[:, 2:], 4, 16).to(torch.float32).sub_(8).mul_(_float16(blocks, 0))


def _q4_1(blocks: Tensor) -> Tensor:
    """A scale, a minimum, 32 codes."""
    return bit_fields(blocks[:, 4:], 4, 16).to(torch.float32).mul_(_float16(blocks, 0)).add_(_float16(blocks, 2))


def _q5_codes(high: Tensor, low: Tensor) -> Tensor:
    """The fifth bits of all 32, then the four others of each."""
    return (bit_fields(low, 4, 16) | (bit_fields(high, 1, 1) << 4)).to(torch.float32)


def _q5_0(blocks: Tensor) -> Tensor:
    return _q5_codes(blocks[:, 2:6], blocks[:, 6:]).sub_(16).mul_(_float16(blocks, 0))


def _q5_1(blocks: Tensor) -> Tensor:
    return _q5_codes(blocks[:, 4:8], blocks[:, 8:]).mul_(_float16(blocks, 0)).add_(_float16(blocks, 2))


def _q8_0(blocks: Tensor) -> Tensor:
    """A scale, 32 signed codes."""
    return blocks[:, 2:].contiguous().view(torch.int8).to(torch.float32).mul_(_float16(blocks, 0))


def _q2_k(blocks: Tensor) -> Tensor:
    """16 bytes of a scale (low half) and a minimum (high half) each, 256 codes, the scale and the minimum of those."""
    scales = _float16(blocks, 80) * (blocks[:, :16] & 15).to(torch.float32)
    minima = _float16(blocks, 82) * (blocks[:, :16] >> 4).to(torch.float32)
    codes = _floats(bit_fields(blocks[:, 16:80], 2, 32), 16)
    return codes.mul_(scales.unsqueeze(2)).sub_(minima.unsqueeze(2))


def _q3_k(blocks: Tensor) -> Tensor:
    """256 third bits (set: nothing is taken off), 256 codes, 16 scales of 6 bits in 12 bytes, the scale of those."""
    low, high = bit_fields(blocks[:, 96:104], 4, 8), bit_fields(blocks[:, 104:108], 2, 4)
    scales = (low | (high << 4)).to(torch.float32).sub_(32).mul_(_float16(blocks, 108))
    codes = _floats(bit_fields(blocks[:, 32:96], 2, 32) | (bit_fields(blocks[:, :32], 1, 32) << 2), 16)
    return codes.sub_(4).mul_(scales.unsqueeze(2))


def _six_bit_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minima in 12 bytes: the first four of each whole, the others in what is left."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((first & 63, (third & 15) | ((first >> 2) & 48)), 1)
    minima = torch.cat((second & 63, (third >> 4) | ((second >> 2) & 48)), 1)
    return scales.to(torch.float32), minima.to(torch.float32)


def _with_minima(blocks: Tensor, codes: Tensor) -> Tensor:
    """Codes of a block that starts with a scale, a minimum and 12 bytes of their factors."""
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    scales, minima = scales.mul_(_float16(blocks, 0)), minima.mul_(_float16(blocks, 2))
    return _floats(codes, 8).mul_(scales.unsqueeze(2)).sub_(minima.unsqueeze(2))


def _q4_k(blocks: Tensor) -> Tensor:
    return _with_minima(blocks, bit_fields(blocks[:, 16:], 4, 32))


def _q5_k(blocks: Tensor) -> Tensor:
    return _with_minima(blocks, bit_fields(blocks[:, 48:], 4, 32) | (bit_fields(blocks[:, 16:48], 1, 32) << 4))


def _q6_k(blocks: Tensor) -> Tensor:
    """The four low bits of 256 codes, the two high bits, 16 signed scales, the scale of those."""
    scales = blocks[:, 192:208].contiguous().view(torch.int8).to(torch.float32).mul_(_float16(blocks, 208))
    codes = bit_fields(blocks[:, :128], 4, 64) | (bit_fields(blocks[:, 128:192], 2, 32) << 4)
    return _floats(codes, 16).sub_(32).mul_(scales.unsqueeze(2))


def _iq4_nl(blocks: Tensor) -> Tensor:
    """A scale, 32 places in a table."""
    return _looked_up(IQ4_VALUES, bit_fields(blocks[:, 2:], 4, 16)).mul_(_float16(blocks, 0))


def _iq4_xs(blocks: Tensor) -> Tensor:
    """A scale, the two high bits and then the four low ones of eight factors, 256 places in a table."""
    factors = bit_fields(blocks[:, 4:8], 4, 1) | (bit_fields(blocks[:, 2:4], 2, 1) << 4)
    scales = factors.to(torch.float32).sub_(32).mul_(_float16(blocks, 0))
    return _looked_up(IQ4_VALUES, bit_fields(blocks[:, 8:], 4, 16)).view(-1, 8, 32).mul_(scales.unsqueeze(2))


def _mxfp4(blocks: Tensor) -> Tensor:
    """An exponent, 32 places in a table."""
    scales = half_of_exponent(blocks[:, :1]).to(torch.float32)
    return _looked_up(MXFP4_DOUBLED, bit_fields(blocks[:, 1:], 4, 16)).mul_(scales)


_DECODERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
}
