"""Mistral, a Llama with a sliding window, and Mixtral, which has experts in place of the dense feed-forward."""

import attrs

from hydra.protocol.model.decoder_spec import DecoderSpec, MoeSpec, NormSpec
from hydra.protocol.model.model_spec import ModelShape
from hydra.store.models.config_values import Values
from hydra.store.models.family import SILU, Family, Sizes, read_activation, read_sizes, read_window
from hydra.store.models.names import ATTENTION, DENSE, MLP_NORM, Names, Slot
from hydra.store.models.rope_config import RopeDefaults, read_rope

EXPERTS_MAX = 4096


def _decoder(config: Values, sizes: Sizes, *, eps: float, theta: float, window: int | None) -> DecoderSpec:
    return DecoderSpec(
        norm=NormSpec(kind="rms", eps=config.number("rms_norm_eps", 1.0, eps)),
        block="sequential",
        activation=read_activation(config, SILU, "silu"),
        ropes=(read_rope(config, RopeDefaults(theta=theta), sizes.head_dim, sizes.max_positions),),
        windows=(read_window(config, window) or 0,) * sizes.n_layers,
        layer_ropes=(0,) * sizes.n_layers,
        sparse=(False,) * sizes.n_layers,
    )


def _read_mistral(config: Values, architecture: str) -> ModelShape:
    sizes = read_sizes(config, max_positions=131_072, kv_heads=True)
    return sizes.shape(architecture, _decoder(config, sizes, eps=1e-6, theta=10_000.0, window=4096))


def _read_mixtral(config: Values, architecture: str) -> ModelShape:
    sizes = read_sizes(config, max_positions=131_072, kv_heads=True)
    experts = config.integer("num_local_experts", EXPERTS_MAX)
    moe = MoeSpec(
        n_experts=experts,
        top_k=config.integer("num_experts_per_tok", experts, 2),
        intermediate=sizes.intermediate,
        normalised=True,
    )
    plain = _decoder(config, sizes, eps=1e-5, theta=1_000_000.0, window=None)
    return sizes.shape(architecture, attrs.evolve(plain, moe=moe, sparse=(True,) * sizes.n_layers))


MISTRAL = Family(
    architecture="MistralForCausalLM",
    model_type="mistral",
    names=Names(layer={**ATTENTION, **MLP_NORM, **DENSE}),
    read=_read_mistral,
)
MIXTRAL = Family(
    architecture="MixtralForCausalLM",
    model_type="mixtral",
    names=Names(
        layer={
            **ATTENTION,
            **MLP_NORM,
            "block_sparse_moe.gate": Slot("router"),
            "block_sparse_moe.experts.{expert}.w1": Slot("expert_gate_up", "gate"),
            "block_sparse_moe.experts.{expert}.w3": Slot("expert_gate_up", "up"),
            "block_sparse_moe.experts.{expert}.w2": Slot("expert_down"),
        }
    ),
    read=_read_mixtral,
)
