"""One layer of a decoder as data: its attention, its feed-forward, what it keeps of a row, and how they are joined.

A kind of attention or feed-forward is a class here, a member of its union, and a kernel that is made from it (see
kernels/model); its matrices stand in `layout`. Every value is explicit: a worker that holds a spec guesses nothing.
Knows no family by name, no published tensor and no arithmetic of its own.
"""

from typing import Literal, TypeAlias

import attrs

from hydra.protocol.model.cache_spec import CacheSpec
from hydra.protocol.model.rope_spec import RopeSpec

NormKind = Literal["rms", "rms_plus_one", "layer"]  # x * w; x * (1 + w); centred, with w and a bias
BlockKind = Literal["sequential", "parallel", "sandwich"]
Activation = Literal["silu", "gelu", "gelu_tanh"]


@attrs.frozen(kw_only=True)
class NormSpec:
    """A norm over the last side of its input."""

    kind: NormKind
    eps: float


@attrs.frozen(kw_only=True)
class SoftmaxAttentionSpec:
    """Attention by a softmax over the past; each key head serves n_heads / n_kv_heads heads."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope: RopeSpec
    window: int = 0  # 0: all positions; w: a token sees itself and the w - 1 before it
    qk_norm: NormSpec | None = None  # over each head of queries and keys, before they are rotated
    scale: float | None = None  # of the scores; None: 1 / sqrt(head_dim)
    softcap: float | None = None  # c: scores become c * tanh(score / c)
    qkv_bias: bool = False
    out_bias: bool = False
    sinks: bool = False  # one learned score per head joins the softmax, and its share goes nowhere


@attrs.frozen(kw_only=True)
class DenseSpec:
    """activation(gate) * up before the last product if it is gated, else activation(up)."""

    intermediate: int
    activation: Activation
    gated: bool = True
    bias: bool = False

    def width(self, hidden: int) -> int:
        """Numbers that one token's intermediates take: gate, up and their product."""
        return 3 * self.intermediate


@attrs.frozen(kw_only=True)
class ClampedGateSpec:
    """gate * sigmoid(alpha * gate) * (up + 1), where gate is at most `limit` and up lies between -limit and limit.

    `in_turns`: the rows of gate and up take turns in their matrix, gate's first; else all of gate's come first.
    """

    limit: float
    alpha: float
    in_turns: bool = False


@attrs.frozen(kw_only=True)
class MoeSpec:
    """A mixture of gated experts: each token goes to the `top_k` likeliest, by a softmax over all of them."""

    n_experts: int
    top_k: int
    intermediate: int
    activation: Activation
    normalised: bool  # whether the chosen experts' weights are made to sum to 1
    router_bias: bool = False
    expert_bias: bool = False
    clamped: ClampedGateSpec | None = None  # what is done in place of `activation`

    def width(self, hidden: int) -> int:
        """As DenseSpec.width, for each expert that a token goes to, with its input and output; and the odds of all."""
        return self.n_experts + self.top_k * (2 * hidden + 3 * self.intermediate)


AttentionSpec: TypeAlias = SoftmaxAttentionSpec
FeedForwardSpec: TypeAlias = DenseSpec | MoeSpec


@attrs.frozen(kw_only=True)
class LayerSpec:
    """`block` says how attention and feed-forward follow each other, `norm` is that of all norms around them."""

    attention: AttentionSpec
    feed_forward: FeedForwardSpec
    cache: CacheSpec
    norm: NormSpec
    block: BlockKind = "sequential"
