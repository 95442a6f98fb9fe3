"""Decoder blocks over a step's tokens, put together once at load from norms, attention and a feed-forward.

A block is a function (x, cache, plan, tables) of hidden states [n, hidden] that returns fresh ones; it is pure but for
the KV cache it writes. What a layer does is chosen when it is built, so that a step asks nothing. Projections that read
the same input are one matrix: a dense block is four products.
"""

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import attrs
import torch
from torch import Tensor

from hydra.kernels.attention.kv_pool import LayerCache
from hydra.kernels.attention.paged_attention import Attend, StepPlan, View, make_decode
from hydra.kernels.attention.sdpa import make_sdpa
from hydra.kernels.model.feed_forward import FeedForward, make_feed_forward
from hydra.kernels.model.norms import Norm, make_norm
from hydra.kernels.model.rotary import Table, Turn, rotate, rotate_some
from hydra.kernels.weights.linear import linear
from hydra.kernels.weights.part_weights import PartWeights
from hydra.protocol.model.model_spec import ModelSpec, Role

Tables: TypeAlias = Sequence[Table]


class Block(Protocol):
    """One layer; `tables` are the slice's, of which it knows its own."""

    def __call__(self, x: Tensor, cache: LayerCache, plan: StepPlan, tables: Tables) -> Tensor: ...


@attrs.frozen(eq=False)
class Attention:
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


@attrs.frozen(eq=False)
class SequentialBlock:
    """Attention, then the feed-forward on its result; a norm before each."""

    attention: Attention
    feed_forward: FeedForward
    attention_norm: Norm
    mlp_norm: Norm

    def __call__(self, x: Tensor, cache: LayerCache, plan: StepPlan, tables: Tables) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cache, plan, tables)
        return x.add_(self.feed_forward(self.mlp_norm(x)))


@attrs.frozen(eq=False)
class ParallelBlock:
    """Attention and feed-forward on the same normed input, both added to it."""

    attention: Attention
    feed_forward: FeedForward
    norm: Norm

    def __call__(self, x: Tensor, cache: LayerCache, plan: StepPlan, tables: Tables) -> Tensor:
        normed = self.norm(x)
        return self.attention(normed, cache, plan, tables).add_(self.feed_forward(normed)).add_(x)


@attrs.frozen(eq=False)
class SandwichBlock:
    """Sequential, with a second norm behind each half, before it is added."""

    attention: Attention
    feed_forward: FeedForward
    attention_norm: Norm
    after_attention_norm: Norm
    mlp_norm: Norm
    after_mlp_norm: Norm

    def __call__(self, x: Tensor, cache: LayerCache, plan: StepPlan, tables: Tables) -> Tensor:
        x = x + self.after_attention_norm(self.attention(self.attention_norm(x), cache, plan, tables))
        return x.add_(self.after_mlp_norm(self.feed_forward(self.mlp_norm(x))))


def layer_view(spec: ModelSpec, layer: int) -> View:
    return View(spec.decoder.windows[layer], spelled_out=spec.decoder.attention_softcap is not None)


def make_block(spec: ModelSpec, layer: int, weights: PartWeights, view: int, table: int) -> Block:
    """`view` and `table` are the layer's places in the step's plan and among its tables."""

    def norm(role: Role, bias: Role) -> Norm:
        return make_norm(spec.decoder.norm, weights[role], weights.get(bias))

    attention = _make_attention(spec, layer, weights, view, table)
    feed_forward = make_feed_forward(spec.decoder, weights, sparse=spec.decoder.sparse[layer])
    first = norm("attention_norm", "attention_norm_bias")
    if spec.decoder.block == "parallel":
        return ParallelBlock(attention, feed_forward, first)
    second = norm("mlp_norm", "mlp_norm_bias")
    if spec.decoder.block == "sequential":
        return SequentialBlock(attention, feed_forward, first, second)
    behind_first = norm("after_attention_norm", "after_attention_norm_bias")
    behind_second = norm("after_mlp_norm", "after_mlp_norm_bias")
    return SandwichBlock(attention, feed_forward, first, behind_first, second, behind_second)


def _make_attention(spec: ModelSpec, layer: int, weights: PartWeights, view: int, table: int) -> Attention:
    return Attention(
        qkv=weights["qkv"],
        qkv_bias=weights.get("qkv_bias"),
        out=weights["out"],
        out_bias=weights.get("out_bias"),
        n_heads=spec.n_heads,
        n_kv_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        turn=_make_turn(spec, layer, weights),
        table=table,
        attend=_make_attend(spec, view, weights["qkv"]),
    )


def _make_attend(spec: ModelSpec, view: int, like: Tensor) -> Attend:
    scale, softcap = spec.decoder.attention_scale, spec.decoder.attention_softcap
    plain = spec.head_dim**-0.5 if scale is None else scale
    return Attend(view, make_sdpa(scale, softcap, like), make_decode(plain, softcap, like.device))


def _make_turn(spec: ModelSpec, layer: int, weights: PartWeights) -> Turn:
    """The rotation of queries and keys side by side, behind their norms where there are any."""
    decoder = spec.decoder
    turn: Turn = rotate if decoder.ropes[decoder.layer_ropes[layer]].dim == spec.head_dim else rotate_some
    if decoder.qk_norm is None:
        return turn
    query_norm = make_norm(decoder.qk_norm, weights["query_norm"], weights.get("query_norm_bias"))
    key_norm = make_norm(decoder.qk_norm, weights["key_norm"], weights.get("key_norm_bias"))
    n_heads = spec.n_heads

    def normed(heads: Tensor, table: Table) -> Tensor:
        return turn(torch.cat((query_norm(heads[:, :n_heads]), key_norm(heads[:, n_heads:])), 1), table)

    return normed
