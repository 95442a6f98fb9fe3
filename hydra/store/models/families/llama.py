"""Llama 1 to 3.x, and what is published as such: the plain case of every choice."""

import attrs

from hydra.protocol.model.decoder_spec import plain_decoder
from hydra.protocol.model.layer_spec import DenseSpec, NormSpec
from hydra.protocol.model.model_spec import ModelShape
from hydra.store.models.config_values import Values
from hydra.store.models.family import SILU, Family, paged_layer, read_activation, read_sizes
from hydra.store.models.names import ATTENTION, DENSE, MLP_NORM, Names
from hydra.store.models.rope_config import RopeDefaults, read_rope


def _read(config: Values, architecture: str) -> ModelShape:
    sizes = read_sizes(config, max_positions=2048)
    bias = config.boolean("attention_bias")
    norm = NormSpec(kind="rms", eps=config.number("rms_norm_eps", 1.0, 1e-6))
    activation = read_activation(config, SILU, "silu")
    rope = read_rope(config, RopeDefaults(), sizes.head_dim, sizes.max_positions)
    attention = attrs.evolve(sizes.attention(rope), qkv_bias=bias, out_bias=bias)
    dense = DenseSpec(intermediate=sizes.intermediate, activation=activation, bias=config.boolean("mlp_bias"))
    return sizes.shape(architecture, plain_decoder(sizes.n_layers, paged_layer(attention, dense, norm)))


LLAMA = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    names=Names(layer={**ATTENTION, **MLP_NORM, **DENSE}),
    read=_read,
)
