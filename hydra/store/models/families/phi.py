"""Phi-1, 1.5 and 2 (parallel blocks, layer norms, biases everywhere) and Phi-3, 3.5 and 4-mini (fused projections)."""

import attrs

from hydra.protocol.model.decoder_spec import plain_decoder
from hydra.protocol.model.layer_spec import DenseSpec, NormSpec
from hydra.protocol.model.model_spec import ModelShape
from hydra.store.models.config_values import Values
from hydra.store.models.family import GELU_TANH, SILU, Family, paged_layer, read_activation, read_sizes, read_window
from hydra.store.models.names import MLP_NORM, Names, Slot
from hydra.store.models.rope_config import RopeDefaults, read_rope


def _read_phi(config: Values, architecture: str) -> ModelShape:
    sizes = read_sizes(config, max_positions=2048)
    norm = NormSpec(kind="layer", eps=config.number("layer_norm_eps", 1.0, 1e-5))
    activation = read_activation(config, {**GELU_TANH, "gelu": "gelu"}, "gelu_new")
    rope = read_rope(config, RopeDefaults(partial=True, share=0.5), sizes.head_dim, sizes.max_positions)
    attention = attrs.evolve(
        sizes.attention(rope),
        qk_norm=norm if config.boolean("qk_layernorm") else None,
        qkv_bias=True,
        out_bias=True,
    )
    dense = DenseSpec(intermediate=sizes.intermediate, activation=activation, gated=False, bias=True)
    plain = plain_decoder(sizes.n_layers, paged_layer(attention, dense, norm, "parallel"))
    return sizes.shape(architecture, attrs.evolve(plain, head_bias=True))


def _read_phi3(config: Values, architecture: str) -> ModelShape:
    sizes = read_sizes(config, max_positions=4096)
    defaults = RopeDefaults(kinds=("default", "longrope"), partial=True, original_max_positions=4096)
    norm = NormSpec(kind="rms", eps=config.number("rms_norm_eps", 1.0, 1e-5))
    dense = DenseSpec(intermediate=sizes.intermediate, activation=read_activation(config, SILU, "silu"))
    rope = read_rope(config, defaults, sizes.head_dim, sizes.max_positions)
    attention = attrs.evolve(sizes.attention(rope), window=read_window(config, None) or 0)
    return sizes.shape(architecture, plain_decoder(sizes.n_layers, paged_layer(attention, dense, norm)))


PHI = Family(
    architecture="PhiForCausalLM",
    model_type="phi",
    names=Names(
        norm="model.final_layernorm",
        layer={
            "input_layernorm": Slot("attention_norm"),
            "self_attn.q_proj": Slot("qkv", "q"),
            "self_attn.k_proj": Slot("qkv", "k"),
            "self_attn.v_proj": Slot("qkv", "v"),
            "self_attn.q_layernorm": Slot("query_norm"),
            "self_attn.k_layernorm": Slot("key_norm"),
            "self_attn.dense": Slot("out"),
            "mlp.fc1": Slot("gate_up"),
            "mlp.fc2": Slot("down"),
        },
    ),
    read=_read_phi,
)
PHI3 = Family(
    architecture="Phi3ForCausalLM",
    model_type="phi3",
    names=Names(
        layer={
            "input_layernorm": Slot("attention_norm"),
            "self_attn.qkv_proj": Slot("qkv"),
            "self_attn.o_proj": Slot("out"),
            **MLP_NORM,
            "mlp.gate_up_proj": Slot("gate_up"),
            "mlp.down_proj": Slot("down"),
        }
    ),
    read=_read_phi3,
)
