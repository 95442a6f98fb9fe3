"""gpt-oss: attention with sinks and alternating windows, biases everywhere, and experts with a clamped gate.

It is published with its experts in MXFP4; what transformers saves unquantised holds them transposed, in plain numbers.
"""

from fnmatch import fnmatchcase

import attrs

from hydra.protocol.model.decoder_spec import decoder_of
from hydra.protocol.model.layer_spec import ClampedGateSpec, MoeSpec, NormSpec
from hydra.protocol.model.model_spec import ModelShape
from hydra.protocol.model.rope_spec import RopeSpec
from hydra.store.files.directory import shown
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
from hydra.store.models.names import ATTENTION, MLP_NORM, NameForm, Names, Slot
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


def _names(experts: dict[str, NameForm]) -> Names:
    """`experts`: what stands behind the name of each matrix of experts, and its form."""
    gate_up = {f"mlp.experts.gate_up_proj{end}": Slot("expert_gate_up", form=form) for end, form in experts.items()}
    down = {f"mlp.experts.down_proj{end}": Slot("expert_down", form=form) for end, form in experts.items()}
    return Names(
        layer={
            **ATTENTION,
            "self_attn.sinks": Slot("sinks", form="tensor"),
            **MLP_NORM,
            "mlp.router": Slot("router"),
            **gate_up,
            **down,
            "mlp.experts.gate_up_proj_bias": Slot("expert_gate_up_bias", form="tensor"),
            "mlp.experts.down_proj_bias": Slot("expert_down_bias", form="tensor"),
        }
    )


_PLAIN = _names({"": "transposed"})
_MXFP4 = _names({"_blocks": "mxfp4_blocks", "_scales": "mxfp4_scales"})


def _own_quantisation(config: Values) -> Names | None:
    """MXFP4 of the experts and of nothing else. Raises RefusalError: bad_model, unsupported."""
    quantised = config.nested("quantization_config")
    if quantised is None or quantised.get("quant_method") != "mxfp4":
        return None
    kept = quantised.get("modules_to_not_convert")
    kept = [] if kept is None else kept
    if not isinstance(kept, list) or not all(isinstance(pattern, str) for pattern in kept):
        raise quantised.bad(f"modules_to_not_convert must be a list of names, not {shown(kept)}")
    n_layers = config.integer("num_hidden_layers", 1024)
    plain = [layer for layer in range(n_layers) if _is_kept(f"model.layers.{layer}.mlp.experts", kept)]
    if len(plain) not in (0, n_layers):
        raise quantised.unsupported("modules_to_not_convert", kept, "MXFP4 in the experts of all layers or of none")
    return _PLAIN if plain else _MXFP4


def _is_kept(module: str, patterns: list[str]) -> bool:
    """Of a pattern "*" stands for anything; it means all that lies below it, and may lack the beginning of a name."""
    return any(fnmatchcase(module, form) for pattern in patterns for form in (pattern, f"{pattern}.*", f"*.{pattern}"))


GPT_OSS = Family(
    architecture="GptOssForCausalLM",
    model_type="gpt_oss",
    names=_PLAIN,
    read=_read,
    own_quantisation=_own_quantisation,
)
