"""Qwen2 (biases on queries, keys and values), Qwen3 (norms on queries and keys instead) and its mixture of experts."""

import attrs

from hydra.protocol.model.decoder_spec import DecoderSpec, MoeSpec, NormSpec
from hydra.protocol.model.model_spec import ModelShape
from hydra.store.files.directory import shown
from hydra.store.models.config_values import Values
from hydra.store.models.families.mistral import EXPERTS_MAX
from hydra.store.models.family import (
    SILU,
    Family,
    Sizes,
    read_activation,
    read_layer_types,
    read_sizes,
    read_window,
    windows_of,
)
from hydra.store.models.names import ATTENTION, DENSE, HEAD_NORMS, MLP_NORM, Names, Slot
from hydra.store.models.rope_config import RopeDefaults, read_rope


def _decoder(config: Values, sizes: Sizes, windows: tuple[int, ...]) -> DecoderSpec:
    return DecoderSpec(
        norm=NormSpec(kind="rms", eps=config.number("rms_norm_eps", 1.0, 1e-6)),
        block="sequential",
        activation=read_activation(config, SILU, "silu"),
        ropes=(read_rope(config, RopeDefaults(), sizes.head_dim, sizes.max_positions),),
        windows=windows,
        layer_ropes=(0,) * sizes.n_layers,
        sparse=(False,) * sizes.n_layers,
    )


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
    decoder = _decoder(config, sizes, _layer_windows(config, sizes))
    return sizes.shape(architecture, attrs.evolve(decoder, qkv_bias=True))


def _with_head_norms(config: Values, decoder: DecoderSpec) -> DecoderSpec:
    bias = config.boolean("attention_bias")
    return attrs.evolve(decoder, qk_norm=decoder.norm, qkv_bias=bias, out_bias=bias)


def _read_qwen3(config: Values, architecture: str) -> ModelShape:
    sizes = read_sizes(config, max_positions=32_768, kv_heads=True, head_dim=128)
    decoder = _decoder(config, sizes, _layer_windows(config, sizes))
    return sizes.shape(architecture, _with_head_norms(config, decoder))


def _read_qwen3_moe(config: Values, architecture: str) -> ModelShape:
    sizes = read_sizes(config, max_positions=32_768, kv_heads=True)
    decoder = _decoder(config, sizes, (_window(config) or 0,) * sizes.n_layers)
    decoder = attrs.evolve(decoder, moe=_moe(config), sparse=_sparse(config, sizes.n_layers))
    return sizes.shape(architecture, _with_head_norms(config, decoder))


def _moe(config: Values) -> MoeSpec:
    keys = [key for key in ("num_experts", "num_local_experts") if config.has(key)] or ["num_experts"]
    counts = {config.integer(key, EXPERTS_MAX) for key in keys}
    if len(counts) > 1:
        raise config.bad(f"{keys[0]} and {keys[1]} differ")
    (experts,) = counts
    return MoeSpec(
        n_experts=experts,
        top_k=config.integer("num_experts_per_tok", experts, min(8, experts)),
        intermediate=config.integer("moe_intermediate_size", 2**20, 768),
        normalised=config.boolean("norm_topk_prob"),
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
