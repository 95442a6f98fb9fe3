"""How a decoder computes, beyond its sizes: norms, rotary positions, attention, feed-forward, and what each layer uses.

Read once from a model's config and carried to the workers inside ModelSpec. Every value is explicit: a worker that
holds a spec guesses nothing. Knows no family by name, no published tensor and no arithmetic of its own.
"""

from typing import Literal

import attrs

NormKind = Literal["rms", "rms_plus_one", "layer"]  # x * w; x * (1 + w); centred, with w and a bias
BlockKind = Literal["sequential", "parallel", "sandwich"]
Activation = Literal["silu", "gelu", "gelu_tanh"]
RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]


@attrs.frozen(kw_only=True)
class NormSpec:
    """A norm over the last side of its input."""

    kind: NormKind
    eps: float


@attrs.frozen(kw_only=True)
class RopeSpec:
    """Rotary positions of the first `dim` channels of each head (Su et al., arXiv:2104.09864) and their scaling.

    Only the fields that `kind` names are looked at. `dynamic` and `longrope` depend on how long a row is, see
    `depends_on_length`. `attention_factor` multiplies cosine and sine.
    """

    kind: RopeKind
    theta: float
    dim: int
    factor: float = 1.0  # linear, dynamic, llama3, yarn
    original_max_positions: int = 0  # dynamic, llama3, yarn, longrope: the context of pretraining
    low_freq_factor: float = 0.0  # llama3
    high_freq_factor: float = 0.0  # llama3
    beta_fast: float = 0.0  # yarn
    beta_slow: float = 0.0  # yarn
    truncate: bool = True  # yarn
    short_factors: tuple[float, ...] = ()  # longrope, one per pair of channels
    long_factors: tuple[float, ...] = ()
    attention_factor: float = 1.0

    @property
    def depends_on_length(self) -> bool:
        """Whether a token's rotation depends on more than its position."""
        return self.kind in ("dynamic", "longrope")


@attrs.frozen(kw_only=True)
class MoeSpec:
    """A mixture of gated experts: each token goes to the `top_k` likeliest, by a softmax over all of them."""

    n_experts: int
    top_k: int
    intermediate: int
    normalised: bool  # whether the chosen experts' weights are made to sum to 1


@attrs.frozen(kw_only=True)
class LengthRule:
    """How rows must be run whose rotary positions depend on their length, so that a replay meets the same ones.

    A row counts as long beyond `limit` tokens: of its whole history if it `reopens` (longrope), else of its prompt
    (dynamic). Long rows share no keys with others. A row that reopens must be opened again before it grows past
    `limit`, because then all of its keys change.
    """

    limit: int
    reopens: bool

    def long(self, prompt_tokens: int, history_tokens: int) -> bool:
        return (history_tokens if self.reopens else prompt_tokens) > self.limit


@attrs.frozen(kw_only=True)
class DecoderSpec:
    """The arithmetic of all layers and both ends. The tuples `windows`, `layer_ropes` and `sparse` have one entry per
    layer: the sliding window (0: all positions; w: a token sees itself and the w - 1 before it), the index into
    `ropes`, and whether the feed-forward is the mixture `moe`.
    """

    norm: NormSpec
    block: BlockKind
    activation: Activation
    ropes: tuple[RopeSpec, ...]
    windows: tuple[int, ...]
    layer_ropes: tuple[int, ...]
    sparse: tuple[bool, ...]
    moe: MoeSpec | None = None
    gated: bool = True  # activation(gate) * up before the last product; else activation(up)
    qk_norm: NormSpec | None = None  # over each head of queries and keys, before they are rotated
    attention_scale: float | None = None  # of the scores; None: 1 / sqrt(head_dim)
    attention_softcap: float | None = None  # c: scores become c * tanh(score / c)
    logit_softcap: float | None = None  # likewise for the logits
    embedding_scale: float = 1.0
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    float16_overflows: bool = False  # its hidden states are known to leave the range of float16

    @property
    def length_rule(self) -> LengthRule | None:
        """None where a token's rotation follows from its position alone."""
        for rope in self.ropes:
            if rope.depends_on_length:
                return LengthRule(limit=rope.original_max_positions, reopens=rope.kind == "longrope")
        return None


def plain_decoder(n_layers: int, head_dim: int, *, eps: float = 1e-5, theta: float = 10_000.0) -> DecoderSpec:
    """The plain case of every choice: a Llama without biases and scaling."""
    return DecoderSpec(
        norm=NormSpec(kind="rms", eps=eps),
        block="sequential",
        activation="silu",
        ropes=(RopeSpec(kind="default", theta=theta, dim=head_dim),),
        windows=(0,) * n_layers,
        layer_ropes=(0,) * n_layers,
        sparse=(False,) * n_layers,
    )
