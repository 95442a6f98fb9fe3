"""Attention by a softmax over a row's past, bound to its weights once, at load: SoftmaxAttentionSpec as a kernel.

Projections that read the same input are one matrix, so it is two products around the mixing of values. Knows its own
view of the step's plan and its own table of rotations; neither norms nor residuals of its layer.
"""

import attrs
import torch
from torch import Tensor

from hydra.kernels.attention.kv_pool import LayerCache
from hydra.kernels.attention.paged_attention import Attend, StepPlan, View, make_decode
from hydra.kernels.attention.sdpa import make_sdpa
from hydra.kernels.model.norms import make_norm
from hydra.kernels.model.rotary import Table, Tables, Turn, rotate, rotate_some
from hydra.kernels.weights.linear import linear
from hydra.kernels.weights.part_weights import PartWeights
from hydra.protocol.model.layer_spec import SoftmaxAttentionSpec


@attrs.frozen(eq=False)
class SoftmaxAttention:
    """Queries, keys and values of all heads, rotated, mixed over the row's past, and projected back."""

    qkv: Tensor  # rows of q, then k, then v
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    n_heads: int
    n_kv_heads: int
    head_dim: int
    turn: Turn
    table: int  # its place among the slice's tables
    attend: Attend

    def __call__(self, x: Tensor, cache: LayerCache, plan: StepPlan, tables: Tables) -> Tensor:
        rotated = self.n_heads + self.n_kv_heads
        heads = linear(x, self.qkv, self.qkv_bias).view(x.shape[0], rotated + self.n_kv_heads, self.head_dim)
        query_key = self.turn(heads[:, :rotated], tables[self.table])
        query, key = query_key[:, : self.n_heads], query_key[:, self.n_heads :]
        return linear(self.attend(query, key, heads[:, rotated:], cache, plan), self.out, self.out_bias)


def attention_view(spec: SoftmaxAttentionSpec) -> View:
    """What a step's plan must have ready for it."""
    return View(spec.window, spelled_out=spec.softcap is not None)


def make_softmax_attention(spec: SoftmaxAttentionSpec, weights: PartWeights, view: int, table: int) -> SoftmaxAttention:
    """`view` and `table` are its places in the step's plan and among the slice's tables."""
    return SoftmaxAttention(
        qkv=weights["qkv"],
        qkv_bias=weights.get("qkv_bias"),
        out=weights["out"],
        out_bias=weights.get("out_bias"),
        n_heads=spec.n_heads,
        n_kv_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        turn=_make_turn(spec, weights),
        table=table,
        attend=_make_attend(spec, view, weights["qkv"]),
    )


def _make_attend(spec: SoftmaxAttentionSpec, view: int, like: Tensor) -> Attend:
    plain = spec.head_dim**-0.5 if spec.scale is None else spec.scale
    return Attend(view, make_sdpa(spec.scale, spec.softcap, like), make_decode(plain, spec.softcap, like.device))


def _make_turn(spec: SoftmaxAttentionSpec, weights: PartWeights) -> Turn:
    """The rotation of queries and keys side by side, behind their norms where there are any."""
    turn: Turn = rotate if spec.rope.dim == spec.head_dim else rotate_some
    if spec.qk_norm is None:
        return turn
    query_norm = make_norm(spec.qk_norm, weights["query_norm"], weights.get("query_norm_bias"))
    key_norm = make_norm(spec.qk_norm, weights["key_norm"], weights.get("key_norm_bias"))
    n_heads = spec.n_heads

    def normed(heads: Tensor, table: Table) -> Tensor:
        return turn(torch.cat((query_norm(heads[:, :n_heads]), key_norm(heads[:, n_heads:])), 1), table)

    return normed
