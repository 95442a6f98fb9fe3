"""Attention by a softmax over a row's past, bound to its weights once, at load: SoftmaxAttentionSpec as a kernel.

Projections that read the same input are one matrix, so it is two products around the mixing of values. Knows its own
view of the step's plan and its own table of rotations; neither norms nor residuals of its layer.
"""

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from hydra.kernels.attention.kv_pool import LayerCache
from hydra.kernels.attention.paged_attention import Attend, StepPlan, View, make_decode
from hydra.kernels.attention.sdpa import make_sdpa
from hydra.kernels.model.layer_context import LayerContext
from hydra.kernels.model.norms import Norm, make_norm
from hydra.kernels.model.rotary import RotaryTable, RotaryTables, Turn, make_turn
from hydra.kernels.weights.linear import Linear
from hydra.kernels.weights.part_weights import PartWeights
from hydra.protocol.model.layer_spec import SoftmaxAttentionSpec
from hydra.protocol.model.model_spec import WeightRole


@attrs.frozen(eq=False)
class SoftmaxAttention:
    """Queries, keys and values of all heads, rotated, mixed over the row's past, and projected back."""

    qkv: Linear  # rows of q, then k, then v
    out: Linear
    n_heads: int
    n_kv_heads: int
    head_dim: int
    turn: Turn
    table: int  # its place among the slice's tables
    attend: Attend

    def __call__(self, x: Tensor, cache: LayerCache, plan: StepPlan, tables: RotaryTables) -> Tensor:
        rotated = self.n_heads + self.n_kv_heads
        heads = self.qkv(x).view(x.shape[0], rotated + self.n_kv_heads, self.head_dim)
        table = tables[self.table]
        query_key = self.turn(heads[:, :rotated], table)
        query, key = query_key[:, : self.n_heads], query_key[:, self.n_heads :]
        if table.query_scale is not None:
            query = query * table.query_scale
        return self.out(self.attend(query, key, heads[:, rotated:], cache, plan))


@attrs.frozen(eq=False)
class NormedTurn:
    """A rotation behind the norms of queries and of keys."""

    query_norm: Norm
    key_norm: Norm
    n_heads: int
    turn: Turn

    def __call__(self, heads: Tensor, table: RotaryTable) -> Tensor:
        queries, keys = heads[:, : self.n_heads], heads[:, self.n_heads :]
        return self.turn(torch.cat((self.query_norm(queries), self.key_norm(keys)), 1), table)


def attention_view(spec: SoftmaxAttentionSpec) -> View:
    """What a step's plan must have ready for it."""
    return View(spec.window, spelled_out=spec.softcap is not None or spec.sinks)


def make_softmax_attention(spec: SoftmaxAttentionSpec, weights: PartWeights, context: LayerContext) -> SoftmaxAttention:
    return SoftmaxAttention(
        qkv=weights.linears["qkv"],
        out=weights.linears["out"],
        n_heads=spec.n_heads,
        n_kv_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        turn=_make_turn(spec, weights.tensors, context),
        table=context.table,
        attend=_make_attend(spec, weights.tensors.get("sinks"), context),
    )


def _make_attend(spec: SoftmaxAttentionSpec, sinks: Tensor | None, context: LayerContext) -> Attend:
    plain = spec.head_dim**-0.5 if spec.scale is None else spec.scale
    wide = None if sinks is None else sinks.to(torch.float32)
    mix = make_sdpa(spec.scale, spec.softcap, wide, context.dtype, context.device)
    return Attend(context.view, mix, make_decode(plain, spec.softcap, wide, context.dtype, context.device))


def _make_turn(spec: SoftmaxAttentionSpec, tensors: Mapping[WeightRole, Tensor], context: LayerContext) -> Turn:
    """The rotation of queries and keys side by side, behind their norms where there are any."""
    turn = make_turn(whole=spec.rope.dim == spec.head_dim, dtype=context.dtype, device=context.device)
    if spec.qk_norm is None:
        return turn
    query_norm = make_norm(spec.qk_norm, tensors["query_norm"], tensors.get("query_norm_bias"))
    key_norm = make_norm(spec.qk_norm, tensors["key_norm"], tensors.get("key_norm_bias"))
    return NormedTurn(query_norm, key_norm, spec.n_heads, turn)
