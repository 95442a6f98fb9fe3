"""Configs as the families' publishers write them: read as meant, or refused by name before any weight is looked at."""

import json
import math

import attrs
import pytest

from hydra.protocol.model.cache_spec import PagedKvSpec
from hydra.protocol.model.decoder_spec import LengthRule
from hydra.protocol.model.layer_spec import ClampedGateSpec, DenseSpec, MoeSpec, NormSpec
from hydra.protocol.model.layout import part_shapes, slice_parts
from hydra.protocol.model.rope_spec import RopeSpec
from hydra.protocol.refusal import RefusalError
from hydra.store.models.config import read_config
from hydra.store.models.families import FAMILIES
from hydra.store.models.names import expected_tensors

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 7 + [3]}
PLAIN = RopeSpec(kind="default", theta=10_000.0, dim=16)
EXTRA = {
    "MixtralForCausalLM": {"num_local_experts": 3},
    "Qwen3MoeForCausalLM": {"num_experts": 3, "decoder_sparse_step": 2},
    "GptOssForCausalLM": {"num_local_experts": 4, "head_dim": 16},
    "Ministral3ForCausalLM": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
}


def read(path, architecture, **said):
    """The shape that a config.json of SIZES and these keys describes; a key that is ... is left out."""
    config = {"architectures": [f"{architecture}ForCausalLM"]} | SIZES | said
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    return read_config(path).shape


def ropes(path, architecture, **said):
    return read(path, architecture, **said).decoder.ropes


def windows(shape):
    return tuple(layer.attention.window for layer in shape.decoder.layers)


def refused(path, architecture, **said):
    with pytest.raises(RefusalError) as caught:
        read(path, architecture, **said)
    return caught.value.refusal


def test_each_family_is_known_by_its_architecture():
    assert set(FAMILIES) == {
        f"{name}ForCausalLM"
        for name in (
            "Llama", "Mistral", "Ministral3", "Mixtral", "Qwen2", "Qwen3", "Qwen3Moe", "Phi", "Phi3", "Gemma2",
            "Gemma3", "GptOss",
        )
    }  # fmt: skip


def _part(place):
    return (
        place.layer
        if place.layer is not None
        else {"final_norm": "norm", "final_norm_bias": "norm"}.get(place.role, place.role.removesuffix("_bias"))
    )


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_table_of_names_fills_every_canonical_matrix(tmp_path, architecture):
    """No row is left out and none is named twice, in either kind of layer."""
    shape = read(tmp_path, architecture.removesuffix("ForCausalLM"), **EXTRA.get(architecture, {}))
    assert_filled(shape, FAMILIES[architecture].names)


def assert_filled(shape, names):
    expected = list(expected_tensors(shape, names))
    assert len({tensor.name for tensor in expected}) == len(expected)
    rows = {}
    for tensor in expected:
        place = tensor.place
        fused = len(tensor.shape) == 3  # one tensor for all experts
        for expert in range(tensor.shape[0]) if fused else (place.expert,):
            taken = rows.setdefault((_part(place), place.role, expert), set())
            new = set(range(place.first_row, place.first_row + tensor.shape[-2 if fused else 0]))
            assert not new & taken
            taken |= new
    wanted = {}
    for part in slice_parts(shape, 0, shape.n_layers):
        for role, size in part_shapes(shape, part).items():
            experts = range(size[0]) if len(size) == 3 else (None,)
            wanted |= {(part, role, expert): set(range(size[-2 if len(size) > 1 else 0])) for expert in experts}
    assert rows == wanted


# ---------------------------------------------------------------- as published


def test_llama_31(tmp_path):
    shape = read(
        tmp_path, "Llama", model_type="llama", rope_theta=500_000.0, rope_scaling=LLAMA3, rms_norm_eps=1e-5,
        max_position_embeddings=131_072, pretraining_tp=1, torch_dtype="bfloat16", hidden_act="silu",
    )  # fmt: skip
    rope = RopeSpec(
        kind="llama3", theta=500_000.0, dim=16, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_positions=8192,
    )  # fmt: skip
    assert shape.decoder.ropes == (rope,)
    assert shape.decoder.norm == NormSpec(kind="rms", eps=1e-5)
    assert (shape.max_positions, windows(shape), shape.decoder.length_rule) == (131_072, (0,) * 4, None)


def test_mistral_with_a_null_window_has_none_and_without_the_key_its_default(tmp_path):
    assert windows(read(tmp_path, "Mistral", sliding_window=4096)) == (4096,) * 4
    assert windows(read(tmp_path, "Mistral", sliding_window=None)) == (0,) * 4
    assert windows(read(tmp_path, "Mistral")) == (4096,) * 4
    wide = read(tmp_path, "Mistral", head_dim=32).decoder.layer(3)
    assert (wide.attention.head_dim, wide.cache) == (32, PagedKvSpec(n_heads=2, head_dim=32))


def test_mixtral(tmp_path):
    shape = read(tmp_path, "Mixtral", num_local_experts=8, num_experts_per_tok=2, router_aux_loss_coef=0.02)
    (layer,) = shape.decoder.kinds
    moe = MoeSpec(n_experts=8, top_k=2, intermediate=96, activation="silu", normalised=True)
    assert layer.feed_forward == moe and windows(shape) == (0,) * 4
    assert shape.decoder.ropes[0].theta == 1e6


def test_qwen2_has_its_window_only_when_it_is_switched_on(tmp_path):
    published = {"sliding_window": 131_072, "max_window_layers": 2, "use_mrope": False, "attention_dropout": 0.0}
    off = read(tmp_path, "Qwen2", use_sliding_window=False, **published)
    heads = off.decoder.layer(3).attention
    assert windows(off) == (0,) * 4 and (heads.qkv_bias, heads.out_bias, heads.qk_norm) == (True, False, None)
    on = read(tmp_path, "Qwen2", use_sliding_window=True, **published)
    assert windows(on) == (0, 0, 131_072, 131_072)


def test_qwen3(tmp_path):
    shape = read(tmp_path, "Qwen3", max_window_layers=36, sliding_window=None, use_sliding_window=False)
    (layer,) = shape.decoder.kinds
    assert layer.attention.head_dim == 128 and layer.attention.qk_norm == layer.norm == shape.decoder.norm
    layer_types = ["full_attention", "sliding_attention"] * 2
    windowed = read(tmp_path, "Qwen3", layer_types=layer_types, use_sliding_window=True, sliding_window=9)
    assert windows(windowed) == (0, 9, 0, 9)


def test_qwen3_moe_by_either_name_of_its_experts(tmp_path):
    said = {"num_experts_per_tok": 8, "moe_intermediate_size": 40, "norm_topk_prob": True, "head_dim": 128}
    shape = read(tmp_path, "Qwen3Moe", num_experts=128, decoder_sparse_step=2, mlp_only_layers=[3], **said)
    moe = MoeSpec(n_experts=128, top_k=8, intermediate=40, activation="silu", normalised=True)
    dense = DenseSpec(intermediate=96, activation="silu")
    assert [layer.feed_forward for layer in shape.decoder.layers] == [dense, moe, dense, dense]
    other = read(tmp_path, "Qwen3Moe", num_local_experts=128, **said)
    assert [layer.feed_forward for layer in other.decoder.layers] == [moe] * 4
    assert "differ" in refused(tmp_path, "Qwen3Moe", num_local_experts=128, num_experts=64, **said).message


def test_phi_2(tmp_path):
    shape = read(
        tmp_path, "Phi", partial_rotary_factor=0.5, layer_norm_eps=1e-5, qk_layernorm=False, hidden_act="gelu_new",
        num_key_value_heads=..., resid_pdrop=0.1, embd_pdrop=0.0, rope_scaling=None,
    )  # fmt: skip
    decoder = shape.decoder
    (layer,) = decoder.kinds
    assert layer.attention.n_kv_heads == 4 and decoder.ropes == (attrs.evolve(PLAIN, dim=8),)
    assert (layer.block, layer.norm.kind, layer.feed_forward.gated) == ("parallel", "layer", False)
    assert decoder.head_bias and decoder.norm == layer.norm and layer.attention.qk_norm is None
    assert read(tmp_path, "Phi", qk_layernorm=True).decoder.layer(0).attention.qk_norm == layer.norm


def test_phi_3_mini_128k(tmp_path):
    said = {"original_max_position_embeddings": 4096, "max_position_embeddings": 131_072, "sliding_window": 262_144}
    shape = read(
        tmp_path, "Phi3", rope_scaling=LONGROPE, auto_map={"AutoConfig": "configuration_phi3.Phi3Config"}, **said
    )
    (rope,) = shape.decoder.ropes
    assert (rope.kind, rope.original_max_positions, rope.long_factors[-1]) == ("longrope", 4096, 3.0)
    assert rope.attention_factor == math.sqrt(1 + math.log(32) / math.log(4096))
    assert shape.decoder.length_rule == LengthRule(limit=4096, reopens=True)
    old = {**LONGROPE, "type": "su"}
    assert ropes(tmp_path, "Phi3", rope_scaling=old, **said) == (rope,)


def test_phi_4_mini(tmp_path):
    factors = {"short_factor": [1.0] * 6, "long_factor": [4.0] * 6, "type": "longrope"}
    shape = read(
        tmp_path, "Phi3", rope_scaling=factors, partial_rotary_factor=0.75, tie_word_embeddings=True,
        original_max_position_embeddings=4096, max_position_embeddings=131_072, lm_head_bias=False, mlp_bias=False,
    )  # fmt: skip
    assert (shape.decoder.ropes[0].dim, shape.tied) == (12, True)


def test_gemma_2(tmp_path):
    shape = read(
        tmp_path, "Gemma2", head_dim=32, query_pre_attn_scalar=144, attn_logit_softcapping=50.0, sliding_window=4096,
        final_logit_softcapping=30.0, hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh",
        cache_implementation="hybrid",
    )  # fmt: skip
    decoder = shape.decoder
    layer = decoder.layer(1)
    assert windows(shape) == (4096, 0, 4096, 0) and shape.tied
    assert (layer.attention.softcap, decoder.logit_softcap, layer.attention.scale) == (50.0, 30.0, 1 / 12)
    assert (decoder.embedding_scale, decoder.norm.kind, layer.block) == (8.0, "rms_plus_one", "sandwich")
    assert read(tmp_path, "Gemma2").decoder.layer(0).attention.softcap == 50.0
    assert read(tmp_path, "Gemma2", attn_logit_softcapping=None).decoder.layer(0).attention.softcap is None


def test_gemma_3_in_its_older_and_newer_spelling(tmp_path):
    older = {
        "rope_theta": 1_000_000, "rope_local_base_freq": 10_000, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window_pattern": 3, "sliding_window": 512, "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }  # fmt: skip
    newer = {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000},
        },
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "_sliding_window_pattern": 3, "sliding_window": 512,
    }  # fmt: skip
    shape = read(tmp_path, "Gemma3", model_type="gemma3_text", head_dim=16, **older)
    assert read(tmp_path, "Gemma3", model_type="gemma3_text", head_dim=16, **newer) == shape
    full, local = attrs.evolve(PLAIN, kind="linear", theta=1e6, factor=8.0), PLAIN
    heads = [layer.attention for layer in shape.decoder.layers]
    assert [one.rope for one in heads] == [local, local, full, local] and len(shape.decoder.kinds) == 2
    assert windows(shape) == (512, 512, 0, 512) and {one.qk_norm for one in heads} == {shape.decoder.norm}


MINISTRAL_ROPE = {
    "type": "yarn", "rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "original_max_position_embeddings": 16_384, "max_position_embeddings": 262_144, "mscale": 1.0,
    "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip


def test_ministral_3(tmp_path):
    shape = read(tmp_path, "Ministral3", model_type="ministral3", head_dim=128, max_position_embeddings=262_144,
                 rope_parameters=MINISTRAL_ROPE, sliding_window=None)  # fmt: skip
    (rope,) = shape.decoder.ropes
    assert (rope.kind, rope.factor, rope.original_max_positions, rope.query_growth) == ("yarn", 16.0, 16_384, 0.1)
    assert (rope.theta, rope.attention_factor, windows(shape)) == (1e6, 1.0, (0,) * 4)
    assert (shape.max_positions, shape.decoder.norm.eps) == (262_144, 1e-5)


GPT_OSS = {
    "model_type": "gpt_oss", "head_dim": 64, "num_local_experts": 32, "num_experts_per_tok": 4, "experts_per_token": 4,
    "attention_bias": True, "hidden_act": "silu", "swiglu_limit": 7.0, "initial_context_length": 4096,
    "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 150_000, "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "output_router_logits": False,
    "rope_scaling": {
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
        "rope_type": "yarn", "truncate": False,
    },
}  # fmt: skip


def test_gpt_oss_as_published_and_with_what_it_has_by_default(tmp_path):
    shape = read(tmp_path, "GptOss", **GPT_OSS)
    layer, (rope,) = shape.decoder.layer(1), shape.decoder.ropes
    assert windows(shape) == (128, 0, 128, 0) and len(shape.decoder.kinds) == 2
    assert (layer.attention.sinks, layer.attention.qkv_bias, layer.attention.out_bias) == (True, True, True)
    assert (rope.kind, rope.truncate, rope.theta, shape.max_positions) == ("yarn", False, 150_000.0, 131_072)
    assert layer.feed_forward == MoeSpec(
        n_experts=32, top_k=4, intermediate=96, activation="silu", normalised=True, router_bias=True, expert_bias=True,
        clamped=ClampedGateSpec(limit=7.0, alpha=1.702, in_turns=True),
    )  # fmt: skip
    assert read(tmp_path, "GptOss", num_local_experts=32) == shape
    plain = read(tmp_path, "GptOss", num_local_experts=32, rope_parameters={"rope_type": "default"})
    assert plain.decoder.ropes == (RopeSpec(kind="default", theta=150_000.0, dim=64),)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"type": "linear", "factor": 2}, RopeSpec(kind="linear", theta=1e4, dim=16, factor=2.0)),
        (
            {"type": "dynamic", "factor": 2.5},
            RopeSpec(kind="dynamic", theta=1e4, dim=16, factor=2.5, original_max_positions=128),
        ),
        (
            YARN,
            RopeSpec(
                kind="yarn",
                theta=1e4,
                dim=16,
                factor=4.0,
                original_max_positions=32,
                beta_fast=32.0,
                beta_slow=1.0,
                attention_factor=0.1 * math.log(4) + 1,
            ),
        ),
        (
            {
                "type": "yarn",
                "factor": 4,
                "attention_factor": 1.0,
                "beta_fast": 16,
                "truncate": False,
                "finetuned": True,
            },
            RopeSpec(
                kind="yarn",
                theta=1e4,
                dim=16,
                factor=4.0,
                original_max_positions=128,
                beta_fast=16.0,
                beta_slow=1.0,
                truncate=False,
            ),
        ),
    ],
)
def test_scalings(tmp_path, said, meant):
    assert ropes(tmp_path, "Llama", rope_scaling=said, max_position_embeddings=128) == (meant,)


def yarn(factor, original=...):
    said = {"rope_type": "yarn", "factor": factor}
    return said if original is ... else said | {"original_max_position_embeddings": original}


@pytest.mark.parametrize(
    ("positions", "rope", "limit"),
    [
        (64, None, 64),
        (64, {"type": "linear", "factor": 4.0}, 256),
        (64, {"type": "dynamic", "factor": 2.0}, 128),
        (64, yarn(4.0), 256),
        (64, yarn(4.0, 64), 256),
        (256, yarn(4.0, 64), 256),  # stated stretched
        (80, yarn(4.0, 64), 256),  # as Qwen3 is published: 40,960 positions, of which 32,768 are of pretraining
        (512, yarn(4.0, 64), 512),
        (64, {"type": "linear", "factor": 1.3}, 83),
        (2**23, {"type": "linear", "factor": 4.0}, 2**24),
        (131_072, LLAMA3, 131_072),
    ],
)
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_a_stretched_context_can_be_used(tmp_path, positions, rope, limit, spelling):
    shape = read(tmp_path, "Qwen2", max_position_embeddings=positions, **{spelling: rope})
    assert shape.max_positions == limit
    assert shape.decoder.ropes[0].original_max_positions in (0, positions, 64, 8192), "what is rotated stays the same"


def test_what_already_states_its_stretched_context_is_not_stretched_again(tmp_path):
    said = {"original_max_position_embeddings": 4096, "max_position_embeddings": 131_072, "rope_scaling": LONGROPE}
    assert read(tmp_path, "Phi3", **said).max_positions == 131_072
    old = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    new = {"rope_parameters": {"full_attention": {"factor": 8.0, "rope_type": "linear"}}}
    for rope in (old, new):
        assert read(tmp_path, "Gemma3", max_position_embeddings=131_072, **rope).max_positions == 131_072


# ---------------------------------------------------------------- refused by name


REFUSED = [
    # architectures
    ("Falcon", {}, "unsupported", "FalconForCausalLM"),
    ("Llama", {"architectures": ["LlamaForCausalLM", "X"]}, "unsupported", "architectures"),
    ("Llama", {"architectures": "LlamaForCausalLM"}, "unsupported", "architectures"),
    ("Llama", {"architectures": [["LlamaForCausalLM"]]}, "unsupported", "architectures"),
    ("Llama", {"architectures": ["LlamaForSequenceClassification"]}, "unsupported", "SequenceClassification"),
    ("Gemma3", {"model_type": "gemma3"}, "unsupported", "model_type"),
    ("Qwen3", {"model_type": "qwen2"}, "unsupported", "model_type"),
    # quantisation
    ("Qwen2", {"quantization_config": {"quant_method": "gptq", "bits": 3}}, "unsupported", "bits is 3"),
    ("Qwen2", {"quantization_config": {"quant_method": "hqq"}}, "unsupported", "HQQ"),
    ("Mixtral", {"quantization_config": {"load_in_8bit": True}}, "unsupported", "load_in_8bit"),
    ("Llama", {"compression_config": {"format": "int"}}, "unsupported", "compression_config"),
    ("Llama", {"quantization": {"bits": 4, "group_size": 64}}, "unsupported", "quantization"),
    # activations
    ("Mistral", {"hidden_act": "gelu"}, "unsupported", "gelu"),
    ("Phi", {"hidden_act": "relu"}, "unsupported", "relu"),
    ("Phi3", {"hidden_act": "gelu_new"}, "unsupported", "gelu_new"),
    ("Gemma2", {"hidden_activation": "silu"}, "unsupported", "silu"),
    ("Gemma3", {"hidden_act": "quick_gelu"}, "unsupported", "quick_gelu"),
    ("Qwen3Moe", {"hidden_act": 3, "num_experts": 4}, "unsupported", "hidden_act"),
    # rope types and their keys
    ("Llama", {"rope_scaling": {"rope_type": "longrope"}}, "unsupported", "longrope"),
    ("Qwen2", {"rope_scaling": {"type": "mrope", "mrope_section": [2]}}, "unsupported", "mrope"),
    ("Qwen2", {"rope_scaling": {"type": "default", "mrope_section": [2]}}, "unsupported", "mrope_section"),
    ("Phi3", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "unsupported", "yarn"),
    ("Llama", {"rope_scaling": {"type": ["linear"], "factor": 2.0}}, "unsupported", "rope type"),
    ("Llama", {"rope_scaling": {"factor": 2.0}}, "unsupported", "factor"),
    ("Llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3}}, "unsupported", "beta_fast"),
    ("Llama", {"rope_scaling": {"type": "linear"}}, "bad_model", "factor"),
    ("Llama", {"rope_scaling": {"type": "linear", "factor": "2"}}, "bad_model", "factor"),
    ("Llama", {"rope_scaling": {"type": "linear", "factor": 0}}, "bad_model", "factor"),
    ("Llama", {"rope_scaling": [1]}, "bad_model", "rope_scaling"),
    ("Llama", {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "bad_model", "high_freq_factor"),
    ("Llama", {"rope_scaling": LLAMA3, "original_max_position_embeddings": 64}, "bad_model", "original_max"),
    ("Llama", {"rope_scaling": YARN | {"beta_fast": 0.5}}, "bad_model", "beta_fast"),
    ("Llama", {"rope_scaling": {"type": "dynamic", "factor": 2}, "head_dim": 2}, "bad_model", "dynamic"),
    ("Phi3", {"rope_scaling": LONGROPE | {"long_factor": [1.0] * 7}}, "bad_model", "long_factor"),
    ("Phi3", {"rope_scaling": LONGROPE | {"short_factor": [1.0] * 7 + [0]}}, "bad_model", "short_factor"),
    ("Phi", {"partial_rotary_factor": 0.2}, "bad_model", "partial_rotary_factor"),
    ("Llama", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "unsupported", "partial"),
    ("Gemma3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "unsupported", "rope_theta"),
    ("Gemma3", {"rope_parameters": {"sliding_attention": {"rope_type": "axial"}}}, "unsupported", "axial"),
    # what a family's arithmetic does not have
    ("Llama", {"sliding_window": 4096}, "unsupported", "sliding_window"),
    ("Llama", {"attn_logit_softcapping": 50.0}, "unsupported", "attn_logit_softcapping"),
    ("Mistral", {"layer_types": ["sliding_attention"] * 4}, "unsupported", "layer_types"),
    ("Qwen2", {"layer_types": ["full_attention"] * 3 + ["chunked_attention"]}, "unsupported", "chunked_attention"),
    ("Qwen2", {"layer_types": ["full_attention"] * 3}, "bad_model", "layer_types"),
    ("Qwen2", {"layer_types": ["sliding_attention"] * 4}, "bad_model", "sliding_window"),
    ("Gemma3", {"attn_logit_softcapping": 50.0}, "unsupported", "attn_logit_softcapping"),
    ("Gemma2", {"use_bidirectional_attention": True}, "unsupported", "use_bidirectional_attention"),
    ("Gemma2", {"sliding_window": None}, "bad_model", "sliding_window"),
    ("Gemma2", {"query_pre_attn_scalar": 0}, "bad_model", "query_pre_attn_scalar"),
    ("Llama", {"logit_scale": 0.0625}, "unsupported", "logit_scale"),
    ("Llama", {"num_local_experts": 8}, "unsupported", "num_local_experts"),
    ("Mixtral", {}, "bad_model", "num_local_experts"),
    ("Mixtral", {"num_local_experts": 2, "num_experts_per_tok": 3}, "bad_model", "num_experts_per_tok"),
    ("Qwen3Moe", {"num_experts": 4, "mlp_only_layers": "0"}, "bad_model", "mlp_only_layers"),
    ("Qwen3Moe", {"num_experts": 4, "decoder_sparse_step": 0}, "bad_model", "decoder_sparse_step"),
    ("Mistral", {"num_key_value_heads": ...}, "bad_model", "num_key_value_heads"),
    ("Mistral", {"rope_scaling": YARN | {"llama_4_scaling_beta": 0.1}}, "unsupported", "llama_4_scaling_beta"),
    ("Ministral3", {"rope_parameters": {"rope_type": "default"}}, "unsupported", "default"),
    ("Ministral3", {"rope_parameters": YARN | {"llama_4_scaling_beta": "a"}}, "bad_model", "llama_4_scaling_beta"),
    ("GptOss", {}, "bad_model", "num_experts"),
    ("GptOss", {"num_local_experts": 4, "hidden_act": "gelu"}, "unsupported", "gelu"),
    ("GptOss", {"num_local_experts": 4, "swiglu_limit": 0}, "bad_model", "swiglu_limit"),
    ("GptOss", {"num_local_experts": 2, "num_experts_per_tok": 4}, "bad_model", "num_experts_per_tok"),
    ("GptOss", {"num_local_experts": 4, "sliding_window": None}, "bad_model", "sliding_window"),
]


@pytest.mark.parametrize(("architecture", "said", "code", "names"), REFUSED)
def test_what_is_not_computed_is_refused_by_name(tmp_path, architecture, said, code, names):
    refusal = refused(tmp_path, architecture, **said)
    assert (refusal.code, names in refusal.message) == (code, True), refusal
    assert len(refusal.message) < 600


@pytest.mark.parametrize(
    "said",
    [
        {"sliding_window": None, "layer_types": ["full_attention"] * 4},
        {"use_sliding_window": False, "num_experts": 0, "partial_rotary_factor": 1.0, "logit_scale": 1},
        {"is_encoder_decoder": False, "use_cache": True, "unsloth_version": "2025.3", "pretraining_tp": 1},
    ],
)
def test_keys_that_change_nothing_are_no_reason_to_refuse(tmp_path, said):
    assert read(tmp_path, "Llama", **said) == read(tmp_path, "Llama")


def test_the_architecture_is_refused_before_anything_else_is_read(tmp_path):
    (tmp_path / "generation_config.json").write_text("nonsense")
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    assert refused(tmp_path, "Bloom", hidden_size="?").message.startswith("config.json: architectures is")
