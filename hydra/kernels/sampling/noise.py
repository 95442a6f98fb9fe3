"""Gumbel noise as a function: the same (seed, choice, position, token id) gives the same number, whatever the batch.

A splitmix64 counter generator in wrapping 64-bit integers, so nothing is remembered between calls and rows, and every
device draws the same bits. Knows no logits.
"""

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_SMALLEST, _LARGEST = 2.0**-64, 1.0 - 2.0**-24  # keep both logarithms finite


def _signed(value: int) -> int:
    """The same 64 bits, as torch's int64 spells them."""
    return value - (1 << 64) if value >> 63 else value


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


def stream_key(seed: int, choice: int, position: int) -> int:
    """One key per drawing: each ingredient is mixed in before the next is added, so that none can cancel another."""
    key = 0
    for ingredient in (seed, choice, position):
        key = _mix((key + ingredient + _GAMMA) & _MASK)
    return key


def hashed(key: int, ids: Tensor) -> Tensor:
    """64 mixed bits per id, as int64. `ids` is int64 and stays as it was."""
    bits = ids * _signed(_GAMMA)
    bits.add_(_signed(key))
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        bits.bitwise_xor_(_shifted(bits, shift)).mul_(_signed(factor))
    return bits.bitwise_xor_(_shifted(bits, 31))


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Logical shift right; torch's own drags the sign along."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


def gumbel(key: int, ids: Tensor) -> Tensor:
    """Standard Gumbel noise per id, float32. Small uniforms keep their full precision, and large noise with them."""
    uniform = _shifted(hashed(key, ids), 1).to(torch.float32).mul_(2.0**-63).clamp_(_SMALLEST, _LARGEST)
    return uniform.neg_().log1p_().neg_().log_().neg_()
