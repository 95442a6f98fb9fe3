"""Gemma 2 and the text models of Gemma 3: sandwiched (1 + w) norms, alternating windows, scaled embeddings."""

from collections.abc import Sequence

import attrs

from hydra.protocol.model.decoder_spec import DecoderSpec, decoder_of
from hydra.protocol.model.layer_spec import DenseSpec, LayerSpec, NormSpec
from hydra.protocol.model.model_spec import ModelShape
from hydra.protocol.model.rope_spec import RopeSpec
from hydra.store.models.config_values import Values
from hydra.store.models.family import (
    FULL,
    GELU_TANH,
    SLIDING,
    Family,
    Sizes,
    paged_layer,
    read_activation,
    read_layer_types,
    read_sizes,
    read_softcap,
    read_window,
    windows_of,
    with_windows,
)
from hydra.store.models.names import ATTENTION, DENSE, HEAD_NORMS, Names, Slot
from hydra.store.models.rope_config import THETA_MAX, RopeDefaults, read_rope, rope_of

_SANDWICH: dict[str, Slot] = {
    "post_attention_layernorm": Slot("after_attention_norm"),
    "pre_feedforward_layernorm": Slot("mlp_norm"),
    "post_feedforward_layernorm": Slot("after_mlp_norm"),
}


def _layer(config: Values, sizes: Sizes, rope: RopeSpec) -> LayerSpec:
    """Without window."""
    if config.boolean("use_bidirectional_attention"):
        raise config.unsupported("use_bidirectional_attention", True, "false")
    bias = config.boolean("attention_bias")
    norm = NormSpec(kind="rms_plus_one", eps=config.number("rms_norm_eps", 1.0, 1e-6))
    activation = read_activation(config, GELU_TANH, "gelu_pytorch_tanh", ("hidden_activation", "hidden_act"))
    scale = config.number("query_pre_attn_scalar", 1e6, 256.0) ** -0.5
    attention = attrs.evolve(sizes.attention(rope), scale=scale, qkv_bias=bias, out_bias=bias)
    dense = DenseSpec(intermediate=sizes.intermediate, activation=activation)
    return paged_layer(attention, dense, norm, "sandwich")


def _decoder(config: Values, sizes: Sizes, layers: Sequence[LayerSpec], cap: float | None) -> DecoderSpec:
    """`cap`: of the logits, where the config is silent."""
    return attrs.evolve(
        decoder_of(layers, layers[0].norm),
        logit_softcap=read_softcap(config, "final_logit_softcapping", cap),
        embedding_scale=sizes.hidden**0.5,
        float16_overflows=True,
    )


def _read_gemma2(config: Values, architecture: str) -> ModelShape:
    sizes = read_sizes(config, max_positions=8192, kv_heads=True, head_dim=256, tied=True)
    sliding = read_layer_types(config, sizes.n_layers, lambda layer: layer % 2 == 0)
    plain = _layer(config, sizes, read_rope(config, RopeDefaults(), sizes.head_dim, sizes.max_positions))
    windows = windows_of(config, sliding, read_window(config, 4096))
    softcap = read_softcap(config, "attn_logit_softcapping", 50.0)
    capped = attrs.evolve(plain, attention=attrs.evolve(plain.attention, softcap=softcap))
    return sizes.shape(architecture, _decoder(config, sizes, with_windows(capped, windows), 30.0))


def _read_gemma3(config: Values, architecture: str) -> ModelShape:
    """transformers' Gemma 3 reads no softcap of attention from its config, so one that is given is refused."""
    sizes = read_sizes(config, max_positions=131_072, kv_heads=True, head_dim=256, tied=True)
    key = "_sliding_window_pattern" if config.has("_sliding_window_pattern") else "sliding_window_pattern"
    pattern = config.integer(key, 2**20, 6)
    sliding = read_layer_types(config, sizes.n_layers, lambda layer: (layer + 1) % pattern != 0)
    full_rope, sliding_rope = _gemma3_ropes(config, sizes)
    plain = _layer(config, sizes, full_rope)
    windows = windows_of(config, sliding, read_window(config, 4096))
    if config.has("attn_logit_softcapping"):
        raise config.unsupported("attn_logit_softcapping", config.get("attn_logit_softcapping"), "null")
    normed = attrs.evolve(plain.attention, qk_norm=plain.norm)
    layers = [
        attrs.evolve(
            plain,
            attention=attrs.evolve(normed, window=window, rope=sliding_rope if slides else full_rope),
        )
        for slides, window in zip(sliding, windows, strict=True)
    ]
    decoder = _decoder(config, sizes, layers, None)
    return sizes.shape(architecture, decoder, stretched=True)  # of 131,072 positions, its linear rope times 8 are all


def _gemma3_ropes(config: Values, sizes: Sizes) -> tuple[RopeSpec, RopeSpec]:
    """(of full layers, of sliding layers): `rope_parameters` by layer type, or the keys of older files."""
    empty = Values({}, config.file)
    by_type = config.nested("rope_parameters") or empty
    unknown = sorted(by_type.keys() - {FULL, SLIDING})
    if unknown:
        raise by_type.unsupported("a key", unknown[0], f"{FULL!r} and {SLIDING!r}")
    old = config.nested("rope_scaling")
    full = old if old is not None and old.keys() else by_type.nested(FULL) or empty
    if old is not None and old.keys() and by_type.has(FULL):
        raise old.bad("and rope_parameters both speak of full attention")
    local_theta = config.number("rope_local_base_freq", THETA_MAX, 10_000.0)
    sides = (sizes.head_dim, sizes.max_positions)
    return (
        rope_of(full, config, RopeDefaults(theta=1_000_000.0), *sides),
        rope_of(by_type.nested(SLIDING) or empty, empty, RopeDefaults(theta=local_theta), *sides),
    )


GEMMA2 = Family(
    architecture="Gemma2ForCausalLM",
    model_type="gemma2",
    names=Names(layer={**ATTENTION, **_SANDWICH, **DENSE}),
    read=_read_gemma2,
)
GEMMA3 = Family(
    architecture="Gemma3ForCausalLM",
    model_type="gemma3_text",
    names=Names(layer={**ATTENTION, **HEAD_NORMS, **_SANDWICH, **DENSE}),
    read=_read_gemma3,
)
