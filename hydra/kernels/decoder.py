"""One Llama decoder block over a step's tokens: attention with shared key heads, then the gated MLP.

Pure but for the KV cache it writes. Projections that read the same input are one matrix, so a block is four products.
"""

import attrs
from torch import Tensor

from hydra.kernels.attention import StepPlan, attend
from hydra.kernels.kv_pool import LayerCache
from hydra.kernels.layers import rms_norm, rotate, swiglu
from hydra.kernels.products import linear, pack
from hydra.protocol.model_spec import ModelSpec


@attrs.frozen(eq=False)
class LayerWeights:
    """A block's weights; biases are None where the model has none."""

    attention_norm: Tensor
    qkv: Tensor  # rows of q, then k, then v
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor  # rows of gate, then up
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None

    @property
    def n_bytes(self) -> int:
        return sum(t.nbytes for t in attrs.asdict(self, recurse=False).values() if t is not None)

    def packed(self) -> "LayerWeights":
        """The same weights, their matrices as the device multiplies by them fastest."""
        matrices = {name: pack(getattr(self, name)) for name in ("qkv", "out", "gate_up", "down")}
        return attrs.evolve(self, **matrices)


def decode(
    x: Tensor, weights: LayerWeights, spec: ModelSpec, cache: LayerCache, plan: StepPlan, rotary: tuple[Tensor, Tensor]
) -> Tensor:
    """The block's output for [n, hidden]; `x` itself is left as it was."""
    n, rotated = x.shape[0], spec.n_heads + spec.n_kv_heads
    qkv = linear(rms_norm(x, weights.attention_norm, spec.norm_eps), weights.qkv, weights.qkv_bias)
    heads = qkv.view(n, rotated + spec.n_kv_heads, spec.head_dim)
    query_key = rotate(heads[:, :rotated], *rotary)
    mixed = attend(query_key[:, : spec.n_heads], query_key[:, spec.n_heads :], heads[:, rotated:], cache, plan)
    x = x + linear(mixed, weights.out, weights.out_bias)
    gate_up = linear(rms_norm(x, weights.mlp_norm, spec.norm_eps), weights.gate_up, weights.gate_up_bias)
    return x.add_(linear(swiglu(gate_up), weights.down, weights.down_bias))
