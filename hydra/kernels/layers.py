"""The small blocks of a decoder as functions over tensors. No state, no module system, nothing global.

Shapes: T tokens, D hidden width, H query heads, G key/value heads, E head width.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[T, D] -> [T, D]; the mean square is taken in float32 (arXiv 1910.07467)."""
    if x.dtype == torch.float32:
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def rotary_table(positions: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of every position, [positions, E] each, float32 (arXiv 2104.09864; halves rotated, not pairs)."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64, device=device).float() / head_dim
    angles = torch.outer(torch.arange(positions, device=device).float(), 1.0 / theta**exponent)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[T, heads, E] turned by its tokens' angles ([T, 1, E] each)."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor, gate_up_bias: Tensor | None, down_bias: Tensor | None) -> Tensor:
    """down(silu(gate(x)) * up(x)), gate and up being one matrix (arXiv 2002.05202)."""
    both = F.linear(x, gate_up, gate_up_bias)
    gate, up = both.chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down, down_bias)
