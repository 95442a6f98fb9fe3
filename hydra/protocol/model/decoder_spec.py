"""How a decoder computes, beyond its sizes: its layers one by one, and what stands before and behind them.

Read once from a model's config and carried to the workers inside ModelSpec. Layers that are equal are one object and
travel once. Knows no family by name, no published tensor and no arithmetic of its own.
"""

from collections.abc import Iterable

import attrs

from hydra.protocol.model.cache_spec import PagedKvSpec
from hydra.protocol.model.layer_spec import DenseSpec, LayerSpec, NormSpec, SoftmaxAttentionSpec
from hydra.protocol.model.rope_spec import RopeSpec


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
    """The arithmetic of all layers and both ends: layer i is `kinds[layer_kinds[i]]`, and no kind stands there twice
    or for nothing.
    """

    kinds: tuple[LayerSpec, ...]
    layer_kinds: tuple[int, ...]
    norm: NormSpec  # behind the last layer
    logit_softcap: float | None = None  # c: logits become c * tanh(logit / c)
    embedding_scale: float = 1.0
    head_bias: bool = False
    float16_overflows: bool = False  # its hidden states are known to leave the range of float16

    @property
    def n_layers(self) -> int:
        return len(self.layer_kinds)

    def layer(self, index: int) -> LayerSpec:
        return self.kinds[self.layer_kinds[index]]

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        return tuple(self.kinds[kind] for kind in self.layer_kinds)

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        """Each that a layer has, once."""
        return tuple(dict.fromkeys(kind.attention.rope for kind in self.kinds))

    @property
    def length_rule(self) -> LengthRule | None:
        """None where a token's rotation follows from its position alone."""
        for rope in self.ropes:
            if rope.depends_on_length:
                return LengthRule(limit=rope.original_max_positions, reopens=rope.kind == "longrope")
        return None


def decoder_of(layers: Iterable[LayerSpec], norm: NormSpec) -> DecoderSpec:
    """These layers, equal ones as one, with plain ends."""
    numbers: dict[LayerSpec, int] = {}
    layer_kinds = tuple([numbers.setdefault(layer, len(numbers)) for layer in layers])
    return DecoderSpec(kinds=tuple(numbers), layer_kinds=layer_kinds, norm=norm)


def plain_layer(
    *, n_heads: int, n_kv_heads: int, head_dim: int, intermediate: int, eps: float = 1e-5, theta: float = 10_000.0
) -> LayerSpec:
    """The plain case of every choice: a layer of a Llama without biases and scaling."""
    rope = RopeSpec(kind="default", theta=theta, dim=head_dim)
    return LayerSpec(
        attention=SoftmaxAttentionSpec(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, rope=rope),
        feed_forward=DenseSpec(intermediate=intermediate, activation="silu"),
        cache=PagedKvSpec(n_heads=n_kv_heads, head_dim=head_dim),
        norm=NormSpec(kind="rms", eps=eps),
    )


def plain_decoder(n_layers: int, layer: LayerSpec) -> DecoderSpec:
    """So many equal layers."""
    return decoder_of([layer] * n_layers, layer.norm)
