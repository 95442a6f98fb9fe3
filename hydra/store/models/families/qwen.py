"""Qwen2 (biases on queries, keys and values), Qwen3 (norms on queries and keys instead) and its mixture of experts; the
text models of Qwen3-VL, in which all experts of a layer lie in one tensor.
"""

import attrs

from hydra.protocol.model.decoder_spec import DecoderSpec, decoder_of
from hydra.protocol.model.layer_spec import Activation, DenseSpec, LayerSpec, MoeSpec, NormSpec
from hydra.protocol.model.model_spec import ModelShape
from hydra.store.files.directory import shown
from hydra.store.models.config_values import Values
from hydra.store.models.families.mistral import EXPERTS_MAX
from hydra.store.models.family import (
    SILU,
    Family,
    Sizes,
    paged_layer,
    read_activation,
    read_layer_types,
    read_sizes,
    read_window,
    windows_of,
    with_windows,
)
from hydra.store.models.names import ATTENTION, DENSE, HEAD_NORMS, MLP_NORM, Names, Slot
from hydra.store.models.rope_config import RopeDefaults, read_rope

_VL_ROPE = RopeDefaults(theta=500_000.0, sections=True)


def _layer(config: Values, sizes: Sizes, habits: RopeDefaults | None = None) -> LayerSpec:
    """Without biases and window."""
    norm = NormSpec(kind="rms", eps=config.number("rms_norm_eps", 1.0, 1e-6))
    dense = DenseSpec(intermediate=sizes.intermediate, activation=read_activation(config, SILU, "silu"))
    rope = read_rope(config, habits or RopeDefaults(), sizes.head_dim, sizes.max_positions)
    return paged_layer(sizes.attention(rope), dense, norm)


def _with_head_norms(config: Values, layer: LayerSpec) -> LayerSpec:
    bias = config.boolean("attention_bias")
    attention = attrs.evolve(layer.attention, qk_norm=layer.norm, qkv_bias=bias, out_bias=bias)
    return attrs.evolve(layer, attention=attention)


def _window(config: Values) -> int | None:
    """A window that is given counts only where it is also switched on."""
    window = read_window(config, 4096)
    return window if config.boolean("use_sliding_window") else None


def _layer_windows(config: Values, sizes: Sizes) -> tuple[int, ...]:
    """The upper layers have the window, from `max_window_layers` on."""
    window = _window(config)
    first = config.integer("max_window_layers", 2**20, 28, least=0)
    sliding = read_layer_types(config, sizes.n_layers, lambda layer: window is not None and layer >= first)
    return windows_of(config, sliding, window)


def _read_qwen2(config: Values, architecture: str) -> ModelShape:
    sizes = read_sizes(config, max_positions=32_768, kv_heads=True)
    windows, plain = _layer_windows(config, sizes), _layer(config, sizes)
    biased = attrs.evolve(plain, attention=attrs.evolve(plain.attention, qkv_bias=True))
    return sizes.shape(architecture, decoder_of(with_windows(biased, windows), plain.norm))


def _read_qwen3(config: Values, architecture: str) -> ModelShape:
    sizes = read_sizes(config, max_positions=32_768, kv_heads=True, head_dim=128)
    windows, layer = _layer_windows(config, sizes), _with_head_norms(config, _layer(config, sizes))
    return sizes.shape(architecture, decoder_of(with_windows(layer, windows), layer.norm))


def _read_qwen3_moe(config: Values, architecture: str) -> ModelShape:
    sizes = read_sizes(config, max_positions=32_768, kv_heads=True)
    window, plain = _window(config) or 0, _layer(config, sizes)
    moe = _moe(config, plain.feed_forward.activation, normalised=config.boolean("norm_topk_prob"))
    (dense,) = with_windows(_with_head_norms(config, plain), [window])
    return sizes.shape(architecture, _mixed(config, sizes, dense, moe))


def _read_qwen3_vl(config: Values, architecture: str) -> ModelShape:
    sizes = read_sizes(config, max_positions=128_000, kv_heads=True, head_dim=128)
    layer = _with_head_norms(config, _layer(config, sizes, _VL_ROPE))
    return sizes.shape(architecture, decoder_of([layer] * sizes.n_layers, layer.norm))


def _read_qwen3_vl_moe(config: Values, architecture: str) -> ModelShape:
    sizes = read_sizes(config, max_positions=128_000, kv_heads=True)
    dense = _with_head_norms(config, _layer(config, sizes, _VL_ROPE))
    if not config.boolean("norm_topk_prob", True):
        raise config.unsupported("norm_topk_prob", False, "true")
    moe = _moe(config, dense.feed_forward.activation, normalised=True)
    return sizes.shape(architecture, _mixed(config, sizes, dense, moe))


def _mixed(config: Values, sizes: Sizes, dense: LayerSpec, moe: MoeSpec) -> DecoderSpec:
    sparse = attrs.evolve(dense, feed_forward=moe)
    return decoder_of((sparse if it_is else dense for it_is in _sparse(config, sizes.n_layers)), dense.norm)


def _moe(config: Values, activation: Activation, *, normalised: bool) -> MoeSpec:
    keys = [key for key in ("num_experts", "num_local_experts") if config.has(key)] or ["num_experts"]
    counts = {config.integer(key, EXPERTS_MAX) for key in keys}
    if len(counts) > 1:
        raise config.bad(f"{keys[0]} and {keys[1]} differ")
    (experts,) = counts
    return MoeSpec(
        n_experts=experts,
        top_k=config.integer("num_experts_per_tok", experts, min(8, experts)),
        intermediate=config.integer("moe_intermediate_size", 2**20, 768),
        activation=activation,
        normalised=normalised,
    )


def _sparse(config: Values, n_layers: int) -> tuple[bool, ...]:
    """Every `decoder_sparse_step`-th layer, but those of `mlp_only_layers`."""
    step = config.integer("decoder_sparse_step", 1024, 1)
    dense = config.get("mlp_only_layers")
    dense = [] if dense is None else dense
    if not isinstance(dense, list) or not all(type(layer) is int for layer in dense):
        raise config.bad(f"mlp_only_layers must be a list of layers, not {shown(dense)}")
    return tuple((layer + 1) % step == 0 and layer not in dense for layer in range(n_layers))


QWEN2 = Family(
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    names=Names(layer={**ATTENTION, **MLP_NORM, **DENSE}),
    read=_read_qwen2,
)
QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    names=Names(layer={**ATTENTION, **HEAD_NORMS, **MLP_NORM, **DENSE}),
    read=_read_qwen3,
)
QWEN3_MOE = Family(
    architecture="Qwen3MoeForCausalLM",
    model_type="qwen3_moe",
    names=Names(
        layer={
            **ATTENTION,
            **HEAD_NORMS,
            **MLP_NORM,
            **DENSE,
            "mlp.gate": Slot("router"),
            "mlp.experts.{expert}.gate_proj": Slot("expert_gate_up", "gate"),
            "mlp.experts.{expert}.up_proj": Slot("expert_gate_up", "up"),
            "mlp.experts.{expert}.down_proj": Slot("expert_down"),
        }
    ),
    read=_read_qwen3_moe,
)
QWEN3_VL = Family(
    architecture="Qwen3VLForConditionalGeneration",
    model_type="qwen3_vl_text",
    names=QWEN3.names,
    read=_read_qwen3_vl,
)
QWEN3_VL_MOE = Family(
    architecture="Qwen3VLMoeForConditionalGeneration",
    model_type="qwen3_vl_moe_text",
    names=Names(
        layer={
            **ATTENTION,
            **HEAD_NORMS,
            **MLP_NORM,
            **DENSE,
            "mlp.gate": Slot("router"),
            "mlp.experts.gate_up_proj": Slot("expert_gate_up", form="either"),
            "mlp.experts.down_proj": Slot("expert_down", form="either"),
        }
    ),
    read=_read_qwen3_vl_moe,
)
