"""Mistral, a Llama with a sliding window, Ministral 3, whose queries grow with their position, and Mixtral, which has
experts in place of the dense feed-forward.
"""

import attrs

from hydra.protocol.model.decoder_spec import plain_decoder
from hydra.protocol.model.layer_spec import DenseSpec, LayerSpec, MoeSpec, NormSpec
from hydra.protocol.model.model_spec import ModelShape
from hydra.store.models.config_values import Values
from hydra.store.models.family import SILU, Family, Sizes, paged_layer, read_activation, read_sizes, read_window
from hydra.store.models.names import ATTENTION, DENSE, MLP_NORM, Names, Slot
from hydra.store.models.rope_config import RopeDefaults, read_rope

EXPERTS_MAX = 4096


def _layer(config: Values, sizes: Sizes, *, eps: float, theta: float, window: int | None) -> LayerSpec:
    norm = NormSpec(kind="rms", eps=config.number("rms_norm_eps", 1.0, eps))
    dense = DenseSpec(intermediate=sizes.intermediate, activation=read_activation(config, SILU, "silu"))
    rope = read_rope(config, RopeDefaults(theta=theta), sizes.head_dim, sizes.max_positions)
    attention = attrs.evolve(sizes.attention(rope), window=read_window(config, window) or 0)
    return paged_layer(attention, dense, norm)


def _read_mistral(config: Values, architecture: str) -> ModelShape:
    sizes = read_sizes(config, max_positions=131_072, kv_heads=True)
    layer = _layer(config, sizes, eps=1e-6, theta=10_000.0, window=4096)
    return sizes.shape(architecture, plain_decoder(sizes.n_layers, layer))


def _read_ministral3(config: Values, architecture: str) -> ModelShape:
    sizes = read_sizes(config, max_positions=262_144, kv_heads=True, head_dim=128)
    norm = NormSpec(kind="rms", eps=config.number("rms_norm_eps", 1.0, 1e-5))
    dense = DenseSpec(intermediate=sizes.intermediate, activation=read_activation(config, SILU, "silu"))
    habits = RopeDefaults(kinds=("yarn",), theta=1_000_000.0, growing_queries=True)
    rope = read_rope(config, habits, sizes.head_dim, sizes.max_positions)
    attention = attrs.evolve(sizes.attention(rope), window=read_window(config, None) or 0)
    return sizes.shape(architecture, plain_decoder(sizes.n_layers, paged_layer(attention, dense, norm)))


def _read_mixtral(config: Values, architecture: str) -> ModelShape:
    sizes = read_sizes(config, max_positions=131_072, kv_heads=True)
    experts = config.integer("num_local_experts", EXPERTS_MAX)
    top_k = config.integer("num_experts_per_tok", experts, 2)
    layer = _layer(config, sizes, eps=1e-5, theta=1_000_000.0, window=None)
    moe = MoeSpec(
        n_experts=experts,
        top_k=top_k,
        intermediate=sizes.intermediate,
        activation=layer.feed_forward.activation,
        normalised=True,
    )
    return sizes.shape(architecture, plain_decoder(sizes.n_layers, attrs.evolve(layer, feed_forward=moe)))


MISTRAL = Family(
    architecture="MistralForCausalLM",
    model_type="mistral",
    names=Names(layer={**ATTENTION, **MLP_NORM, **DENSE}),
    read=_read_mistral,
)
MINISTRAL3 = Family(
    architecture="Ministral3ForCausalLM",
    model_type="ministral3",
    names=Names(layer={**ATTENTION, **MLP_NORM, **DENSE}),
    read=_read_ministral3,
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
