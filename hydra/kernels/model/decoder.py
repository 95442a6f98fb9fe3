"""Decoder blocks over a step's tokens, put together once at load from norms, attention and a feed-forward.

A block is a function (x, cache, plan, tables) of hidden states [n, hidden] that returns fresh ones; it is pure but for
the KV cache it writes. What a layer does is chosen when it is built, so that a step asks nothing. Knows no kind of
attention or feed-forward but by its name.
"""

from typing import Protocol

import attrs
from torch import Tensor

from hydra.kernels.attention.kv_pool import LayerCache
from hydra.kernels.attention.paged_attention import StepPlan
from hydra.kernels.model.feed_forward import FeedForward, make_feed_forward
from hydra.kernels.model.layer_context import LayerContext
from hydra.kernels.model.norms import Norm, make_norm
from hydra.kernels.model.rotary import RotaryTables
from hydra.kernels.model.softmax_attention import make_softmax_attention
from hydra.kernels.weights.part_weights import PartWeights
from hydra.protocol.model.layer_spec import AttentionSpec, LayerSpec, SoftmaxAttentionSpec
from hydra.protocol.model.model_spec import WeightRole


class Block(Protocol):
    """One layer; `tables` are the slice's, of which it knows its own."""

    @property
    def feed_forward(self) -> FeedForward: ...

    def __call__(self, x: Tensor, cache: LayerCache, plan: StepPlan, tables: RotaryTables) -> Tensor: ...


class Attention(Protocol):
    """The half of a layer in which a token looks at its row: hidden states [n, hidden] to what is added to them."""

    def __call__(self, x: Tensor, cache: LayerCache, plan: StepPlan, tables: RotaryTables) -> Tensor: ...


@attrs.frozen(eq=False)
class SequentialBlock:
    """Attention, then the feed-forward on its result; a norm before each."""

    attention: Attention
    feed_forward: FeedForward
    attention_norm: Norm
    mlp_norm: Norm

    def __call__(self, x: Tensor, cache: LayerCache, plan: StepPlan, tables: RotaryTables) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cache, plan, tables)
        return x.add_(self.feed_forward(self.mlp_norm(x)))


@attrs.frozen(eq=False)
class ParallelBlock:
    """Attention and feed-forward on the same normed input, both added to it."""

    attention: Attention
    feed_forward: FeedForward
    norm: Norm

    def __call__(self, x: Tensor, cache: LayerCache, plan: StepPlan, tables: RotaryTables) -> Tensor:
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

    def __call__(self, x: Tensor, cache: LayerCache, plan: StepPlan, tables: RotaryTables) -> Tensor:
        x = x + self.after_attention_norm(self.attention(self.attention_norm(x), cache, plan, tables))
        return x.add_(self.after_mlp_norm(self.feed_forward(self.mlp_norm(x))))


def make_block(layer: LayerSpec, weights: PartWeights, context: LayerContext) -> Block:
    def norm(role: WeightRole, bias: WeightRole) -> Norm:
        return make_norm(layer.norm, weights.tensors[role], weights.tensors.get(bias))

    attention = _make_attention(layer.attention, weights, context)
    feed_forward = make_feed_forward(layer.feed_forward, weights, context)
    first = norm("attention_norm", "attention_norm_bias")
    if layer.block == "parallel":
        return ParallelBlock(attention, feed_forward, first)
    second = norm("mlp_norm", "mlp_norm_bias")
    if layer.block == "sequential":
        return SequentialBlock(attention, feed_forward, first, second)
    behind_first = norm("after_attention_norm", "after_attention_norm_bias")
    behind_second = norm("after_mlp_norm", "after_mlp_norm_bias")
    return SandwichBlock(attention, feed_forward, first, behind_first, second, behind_second)


def _make_attention(spec: AttentionSpec, weights: PartWeights, context: LayerContext) -> Attention:
    match spec:
        case SoftmaxAttentionSpec():
            return make_softmax_attention(spec, weights, context)
