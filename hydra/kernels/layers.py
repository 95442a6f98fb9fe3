"""The arithmetic of a Llama layer, as functions over tensors. No state, no weights of its own, no KV, no batch."""

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x scaled to unit root mean square along its last side (in float32 whatever the dtype), times the weight."""
    return functional.rms_norm(x, weight.shape, weight, eps)


def rotary_frequencies(head_dim: int, theta: float, device: torch.device) -> Tensor:
    """Radians per position of each pair of channels, float32, bit for bit as transformers computes them."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    return (1.0 / (theta**exponent)).to(device)


def rotary_tables(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(cos, signed sin) of shape [n, 1, head_dim] for `rotate`; the sine's first half is negated once, here."""
    angles = positions.to(torch.float32)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    both = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    return both[0].to(dtype).unsqueeze(1), both[1].to(dtype).unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotary embedding of [n, heads, head_dim], halves rotated against each other as in the published weights."""
    low, high = x.chunk(2, -1)
    return torch.addcmul(x * cos, torch.cat((high, low), -1), signed_sin)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, where both lie side by side in one row. Overwrites its argument."""
    gate, up = gate_up.chunk(2, -1)
    return functional.silu(gate, inplace=True).mul_(up)
