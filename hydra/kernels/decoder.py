"""One Llama decoder layer: normalise, attend, add; normalise, gated MLP, add.

Query, key and value projections are one matrix, gate and up another: fewer, larger reads of memory, and loading puts
the stored tensors straight into their rows.
"""

import attrs
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor

from hydra.kernels.attention import attend
from hydra.kernels.kv_pool import KvPool, RowSpan
from hydra.kernels.layers import rms_norm, rotate, swiglu
from hydra.protocol.model_spec import ModelSpec


@attrs.define(eq=False)
class DecoderLayer:
    """The weights of one layer, in the route's dtype. Biases where the family has them."""

    input_norm: Tensor  # [D]
    qkv: Tensor  # [(H + 2 G) E, D]
    out: Tensor  # [D, H E]
    post_norm: Tensor  # [D]
    gate_up: Tensor  # [2 I, D]
    down: Tensor  # [D, I]
    qkv_bias: Tensor | None = None
    out_bias: Tensor | None = None
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None

    def forward(
        self, x: Tensor, spec: ModelSpec, layer: int, pool: KvPool, spans: list[RowSpan], cos: Tensor, sin: Tensor
    ) -> Tensor:
        """[T, D] -> [T, D]; writes this layer's keys and values of the run's tokens into the pool."""
        h, g, e = spec.n_heads, spec.n_kv_heads, spec.head_dim
        normed = rms_norm(x, self.input_norm, spec.norm_eps)
        qkv = F.linear(normed, self.qkv, self.qkv_bias).view(-1, h + 2 * g, e)
        turned = rotate(qkv[:, : h + g], cos, sin)
        mixed = attend(turned[:, :h], turned[:, h:], qkv[:, h + g :], pool.keys[layer], pool.values[layer], spans)
        x = x + F.linear(mixed, self.out, self.out_bias)
        normed = rms_norm(x, self.post_norm, spec.norm_eps)
        return x + swiglu(normed, self.gate_up, self.down, self.gate_up_bias, self.down_bias)
