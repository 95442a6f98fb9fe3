"""gpt-oss: attention with sinks and alternating windows, biases everywhere, and experts with a clamped gate.

It is published with its experts in MXFP4; what transformers saves unquantised holds them transposed, in plain numbers.
"""

import attrs

from hydra.protocol.model.decoder_spec import decoder_of
from hydra.protocol.model.layer_spec import ClampedGateSpec, MoeSpec, NormSpec
from hydra.protocol.model.model_spec import ModelShape
from hydra.protocol.model.rope_spec import RopeSpec
from hydra.store.models.config_values import Values
from hydra.store.models.families.mistral import EXPERTS_MAX
from hydra.store.models.family import (
    CAP_MAX,
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
from hydra.store.models.names import ATTENTION, MLP_NORM, Names, Slot
from hydra.store.models.rope_config import RopeDefaults, read_rope, rope_of

_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def _read(config: Values, architecture: str) -> ModelShape:
    sizes = read_sizes(config, max_positions=131_072, kv_heads=True, head_dim=64)
    sliding = read_layer_types(config, sizes.n_layers, lambda layer: layer % 2 == 0)
    bias = config.boolean("attention_bias", True)
    norm = NormSpec(kind="rms", eps=config.number("rms_norm_eps", 1.0, 1e-5))
    attention = attrs.evolve(sizes.attention(_rope(config, sizes)), qkv_bias=bias, out_bias=bias, sinks=True)
    plain = paged_layer(attention, _moe(config, sizes), norm)
    layers = with_windows(plain, windows_of(config, sliding, read_window(config, 128)))
    return sizes.shape(architecture, decoder_of(layers, norm))


def _rope(config: Values, sizes: Sizes) -> RopeSpec:
    """A config that says nothing of scaling means the published one, unlike anywhere else."""
    habits, sides = RopeDefaults(theta=150_000.0), (sizes.head_dim, sizes.max_positions)
    if config.has("rope_scaling") or config.has("rope_parameters"):
        return read_rope(config, habits, *sides)
    return rope_of(Values(_YARN, config.file), config, habits, *sides)


def _moe(config: Values, sizes: Sizes) -> MoeSpec:
    key = "num_local_experts" if config.has("num_local_experts") else "num_experts"
    experts = config.integer(key, EXPERTS_MAX)
    return MoeSpec(
        n_experts=experts,
        top_k=config.integer("num_experts_per_tok", experts, min(4, experts)),
        intermediate=sizes.intermediate,
        activation=read_activation(config, SILU, "silu"),
        normalised=True,  # of a softmax over the chosen ones alone, which comes to the same
        router_bias=True,
        expert_bias=True,
        clamped=ClampedGateSpec(
            limit=config.number("swiglu_limit", CAP_MAX, 7.0),
            alpha=config.number("swiglu_alpha", CAP_MAX, 1.702),
            in_turns=True,
        ),
    )


_NAMES = Names(
    layer={
        **ATTENTION,
        "self_attn.sinks": Slot("sinks", form="tensor"),
        **MLP_NORM,
        "mlp.router": Slot("router"),
        "mlp.experts.gate_up_proj": Slot("expert_gate_up", form="transposed"),
        "mlp.experts.down_proj": Slot("expert_down", form="transposed"),
        "mlp.experts.gate_up_proj_bias": Slot("expert_gate_up_bias", form="tensor"),
        "mlp.experts.down_proj_bias": Slot("expert_down_bias", form="tensor"),
    }
)


GPT_OSS = Family(
    architecture="GptOssForCausalLM",
    model_type="gpt_oss",
    names=_NAMES,
    read=_read,
)
