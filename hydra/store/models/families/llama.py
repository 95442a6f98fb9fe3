"""Llama 1 to 3.x, and what is published as such: the plain case of every choice."""

from hydra.protocol.model.decoder_spec import DecoderSpec, NormSpec
from hydra.protocol.model.model_spec import ModelShape
from hydra.store.models.config_values import Values
from hydra.store.models.family import SILU, Family, read_activation, read_sizes
from hydra.store.models.names import ATTENTION, DENSE, MLP_NORM, Names
from hydra.store.models.rope_config import RopeDefaults, read_rope


def _read(config: Values, architecture: str) -> ModelShape:
    sizes = read_sizes(config, max_positions=2048)
    bias = config.boolean("attention_bias")
    decoder = DecoderSpec(
        norm=NormSpec(kind="rms", eps=config.number("rms_norm_eps", 1.0, 1e-6)),
        block="sequential",
        activation=read_activation(config, SILU, "silu"),
        ropes=(read_rope(config, RopeDefaults(), sizes.head_dim, sizes.max_positions),),
        windows=(0,) * sizes.n_layers,
        layer_ropes=(0,) * sizes.n_layers,
        sparse=(False,) * sizes.n_layers,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=config.boolean("mlp_bias"),
    )
    return sizes.shape(architecture, decoder)


LLAMA = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    names=Names(layer={**ATTENTION, **MLP_NORM, **DENSE}),
    read=_read,
)
