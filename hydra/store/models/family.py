"""A model family: its names in config.json, how its config is read, and what it calls its tensors.

Promises: the readers here return checked numbers, with the defaults that transformers' config classes have; a config
that says what its family's reader did not look at, yet changes the arithmetic, is refused by name.
"""

from collections.abc import Callable, Mapping, Sequence

import attrs

from hydra.protocol.model.cache_spec import PagedKvSpec
from hydra.protocol.model.decoder_spec import DecoderSpec
from hydra.protocol.model.layer_spec import (
    Activation,
    BlockKind,
    FeedForwardSpec,
    LayerSpec,
    NormSpec,
    SoftmaxAttentionSpec,
)
from hydra.protocol.model.model_spec import ModelShape
from hydra.protocol.model.rope_spec import RopeSpec
from hydra.store.files.directory import shown
from hydra.store.models.config_values import Values
from hydra.store.models.names import Names
from hydra.store.models.rope_config import POSITIONS_MAX, reach

SILU: dict[str, Activation] = {"silu": "silu", "swish": "silu"}
GELU_TANH: dict[str, Activation] = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
SLIDING, FULL = "sliding_attention", "full_attention"
WINDOW_MAX = 2**24
CAP_MAX = 1e6

# Keys that some decoder somewhere computes with, and the values that mean "not this one".
_ARITHMETIC: dict[str, tuple[object, ...]] = {
    "sliding_window": (),
    "use_sliding_window": (False,),
    "layer_types": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "partial_rotary_factor": (1, 1.0),
    "rope_local_base_freq": (),
    "qk_layernorm": (False,),
    "qk_norm": (False,),
    "use_qk_norm": (False,),
    "clip_qkv": (),
    "alibi": (False,),
    "parallel_attn": (False,),
    "no_rope_layers": ([],),
    "attention_chunk_size": (),
    "logit_scale": (1, 1.0),
    "logits_scaling": (1, 1.0),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "attention_multiplier": (),
    "use_bidirectional_attention": (False,),
    "is_causal": (True,),
    "num_local_experts": (0,),
    "num_experts": (0,),
    "n_routed_experts": (0,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
}


@attrs.frozen(kw_only=True)
class Family:
    """`read` returns the shape; it has looked at every key that it understands."""

    architecture: str
    model_type: str
    names: Names
    read: Callable[[Values, str], ModelShape]


@attrs.frozen(kw_only=True)
class Sizes:
    """The widths and counts that every family has."""

    n_layers: int
    hidden: int
    intermediate: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int  # max_position_embeddings, as the config says it
    tied: bool

    def attention(self, rope: RopeSpec) -> SoftmaxAttentionSpec:
        """Of a layer that has nothing beside its heads."""
        return SoftmaxAttentionSpec(n_heads=self.n_heads, n_kv_heads=self.n_kv_heads, head_dim=self.head_dim, rope=rope)

    def shape(self, architecture: str, decoder: DecoderSpec, *, stretched: bool = False) -> ModelShape:
        """`stretched`: max_position_embeddings counts the scaling of the ropes already, whatever its kind."""
        positions = self.max_positions
        return ModelShape(
            architecture=architecture,
            hidden=self.hidden,
            vocab=self.vocab,
            max_positions=positions if stretched else min(reach(rope, positions) for rope in decoder.ropes),
            tied=self.tied,
            decoder=decoder,
        )


def paged_layer(
    attention: SoftmaxAttentionSpec, feed_forward: FeedForwardSpec, norm: NormSpec, block: BlockKind = "sequential"
) -> LayerSpec:
    """A layer that keeps the keys and values of its attention in blocks."""
    cache = PagedKvSpec(n_heads=attention.n_kv_heads, head_dim=attention.head_dim)
    return LayerSpec(attention=attention, feed_forward=feed_forward, cache=cache, norm=norm, block=block)


def with_windows(layer: LayerSpec, windows: Sequence[int]) -> list[LayerSpec]:
    """This layer once for each of these sliding windows."""
    return [attrs.evolve(layer, attention=attrs.evolve(layer.attention, window=window)) for window in windows]


def read_sizes(
    config: Values, *, max_positions: int, kv_heads: bool = False, head_dim: int | None = None, tied: bool = False
) -> Sizes:
    """The arguments are the family's defaults; without `kv_heads` there are as many as heads where it is silent."""
    hidden = config.integer("hidden_size", 65_536)
    n_heads = config.integer("num_attention_heads", 1024)
    n_kv_heads = config.integer("num_key_value_heads", 1024, None if kv_heads else n_heads)
    if n_heads % n_kv_heads:
        raise config.bad(f"num_attention_heads {n_heads} is not a multiple of num_key_value_heads {n_kv_heads}")
    if head_dim is None and not config.has("head_dim") and hidden % n_heads:
        raise config.bad(f"hidden_size {hidden} is not a multiple of num_attention_heads {n_heads}")
    width = config.integer("head_dim", 1024, hidden // n_heads if head_dim is None else head_dim)
    if width % 2:
        raise config.bad(f"head_dim {width} is odd, which rotary positions cannot halve")
    return Sizes(
        n_layers=config.integer("num_hidden_layers", 1024),
        hidden=hidden,
        intermediate=config.integer("intermediate_size", 2**20),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=width,
        vocab=config.integer("vocab_size", 2**22),
        max_positions=config.integer("max_position_embeddings", POSITIONS_MAX, max_positions),
        tied=config.boolean("tie_word_embeddings", tied),
    )


def read_activation(
    config: Values, known: Mapping[str, Activation], default: str, keys: Sequence[str] = ("hidden_act",)
) -> Activation:
    """The first of `keys` that is there counts; all of them must be known."""
    names = [config.get(key) for key in keys if config.has(key)] or [default]
    for key, name in zip([key for key in keys if config.has(key)], names, strict=False):
        if not isinstance(name, str) or name not in known:
            raise config.unsupported(key, name, " or ".join(repr(one) for one in known))
    return known[names[0]]


def read_window(config: Values, default: int | None) -> int | None:
    """`sliding_window`: absent means the family's default, null means none."""
    if not config.has("sliding_window"):
        return None if config.says_null("sliding_window") else default
    return config.integer("sliding_window", WINDOW_MAX)


def read_softcap(config: Values, key: str, default: float | None) -> float | None:
    """Absent means the family's default, null means none."""
    if not config.has(key):
        return None if config.says_null(key) else default
    return config.number(key, CAP_MAX)


def read_layer_types(config: Values, n_layers: int, default: Callable[[int], bool]) -> tuple[bool, ...]:
    """Whether each layer has the sliding window: from `layer_types`, or by the family's rule."""
    kinds = config.get("layer_types")
    if kinds is None:
        return tuple(default(layer) for layer in range(n_layers))
    if not isinstance(kinds, list) or len(kinds) != n_layers:
        raise config.bad(f"layer_types must name the attention of each of {n_layers} layers, not {shown(kinds)}")
    for kind in kinds:
        if kind not in (SLIDING, FULL):
            raise config.unsupported("an entry of layer_types", kind, f"{SLIDING!r} or {FULL!r}")
    return tuple(kind == SLIDING for kind in kinds)


def windows_of(config: Values, sliding: Sequence[bool], window: int | None) -> tuple[int, ...]:
    if window is None and any(sliding):
        raise config.bad("layer_types has layers with a sliding window, but sliding_window is missing")
    return tuple(window or 0 if slides else 0 for slides in sliding)


def refuse_the_unread(config: Values) -> None:
    """Raises RefusalError unsupported for a key that changes the arithmetic of others, and that nobody asked for."""
    for key in sorted(config.keys() - config.read):
        if key in _ARITHMETIC and not _neutral(key, config.peek(key)):
            raise config.unsupported(key, config.peek(key), "a model of this architecture without it")


def _neutral(key: str, value: object) -> bool:
    if key == "layer_types":
        return isinstance(value, list) and all(kind == FULL for kind in value)
    return any(type(value) is type(known) and value == known for known in _ARITHMETIC[key])
