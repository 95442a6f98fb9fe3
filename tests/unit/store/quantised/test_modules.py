"""Which modules of a directory are read encoded: where config and tensors agree, and what becomes of it where not."""

import pytest
import torch
from structlog.testing import capture_logs

from hydra.protocol.model.encoding import GroupEncoding
from hydra.protocol.model.model_spec import Place
from hydra.protocol.refusal import RefusalError
from hydra.store.formats.safetensors_header import StoredTensor, read_weights_header
from hydra.store.models.config_values import Values
from hydra.store.models.families.llama import LLAMA
from hydra.store.models.matrix_ranges import MatrixRanges
from hydra.store.models.model_dir import describe
from hydra.store.models.names import Expected
from hydra.store.models.quantised.read_quantisation import read_quantisation
from hydra.store.models.stored_tensors import StoredTensors
from tests.unit.store.quantised.checkpoints import (
    AUTO_ROUND,
    CONFIG,
    FP8,
    GPTQ,
    HIDDEN,
    INT4,
    INTERMEDIATE,
    NF4,
    VOCAB,
    compressed,
    eights,
    float8,
    floats,
    gptq,
    halves,
    nf4,
    octets,
    packed,
    plain,
    tensors_of,
    write,
)

PACKED = compressed("pack-quantized", INT4)
UP = "model.layers.1.mlp.up_proj"


def encoded(described) -> set[str]:
    return {source.name for source in described.tensors if isinstance(source.encoding, GroupEncoding)}


def refused(path) -> str:
    with pytest.raises(RefusalError) as caught:
        describe(str(path))
    return f"{caught.value.refusal.code}: {caught.value.refusal.message}"


def test_modules_that_the_config_leaves_out_are_plain(tmp_path):
    config = compressed("pack-quantized", INT4, ignore=["lm_head", UP, "re:.*layers.0.*q_proj"])
    own = {"layers.1.mlp.up_proj": plain, "layers.0.self_attn.q_proj": plain}
    with capture_logs() as logs:
        described = describe(str(write(tmp_path, config, tensors_of(packed, own))))
    assert len(encoded(described)) == 12 and f"{UP}.weight_packed" not in encoded(described)
    assert described.spec.layer_sizes[1].numbers == 2 * HIDDEN + INTERMEDIATE * HIDDEN
    assert not [entry for entry in logs if "full precision" in entry["event"]]


def test_what_is_stored_in_full_precision_is_used_so_and_said(tmp_path):
    path = write(tmp_path, PACKED, tensors_of(packed, {"layers.1.mlp.up_proj": plain}))
    with capture_logs() as logs:
        described = describe(str(path))
    assert f"{UP}.weight" in {source.name for source in described.tensors}
    (entry,) = [entry for entry in logs if "full precision" in entry["event"]]
    assert (entry["n"], entry["first"]) == (1, UP)


@pytest.mark.parametrize(
    ("config", "pack", "names"),
    [
        (PACKED | {"ignore": ["lm_head", "re:.*layers.1.mlp.up"]}, packed, f"{UP}.weight_packed"),
        (GPTQ | {"dynamic": {"-:.*1.mlp.up_proj": {}}}, gptq, f"{UP}.qweight"),
        (AUTO_ROUND | {"extra_config": {UP: {"bits": 16}}}, gptq, f"{UP}.qweight"),
        (FP8 | {"modules_to_not_convert": [UP]}, float8(".weight_scale_inv", -1, -2), f"{UP}.weight"),
        (NF4 | {"llm_int8_skip_modules": ["up_proj"]}, lambda r, c: nf4(r, c, nested=True), ".mlp.up_proj.weight"),
    ],
    ids=["packed", "gptq", "auto-round", "fp8", "nf4"],
)
def test_encoded_although_the_config_leaves_it_out(tmp_path, config, pack, names):
    message = refused(write(tmp_path, config, tensors_of(pack)))
    assert message.startswith("bad_model: model.safetensors holds ") and names in message, message
    assert "in full precision" in message and "quantization_config" in message


def test_a_head_and_an_embedding_may_be_quantised(tmp_path):
    path = write(tmp_path / "head", GPTQ | {"lm_head": True}, tensors_of(gptq, {"lm_head": gptq}))
    described = describe(str(path))
    assert "lm_head.qweight" in encoded(described) and described.spec.head_size.numbers == 0
    config = PACKED | {"ignore": []}
    config["config_groups"] = {"all": PACKED["config_groups"]["group_0"] | {"targets": ["Linear", "Embedding"]}}
    path = write(tmp_path / "both", config, tensors_of(packed, {"lm_head": packed, "embed_tokens": packed}))
    described = describe(str(path))
    assert {"model.embed_tokens.weight_packed", "lm_head.weight_packed"} <= encoded(described)
    kept = GroupEncoding("packed", 4, 1, 128).kept_bytes((VOCAB, HIDDEN))
    assert described.spec.embedding_size.memory_bytes("float32") == kept


def test_a_quantised_head_is_not_the_embedding_whatever_the_config_says(tmp_path):
    config = AUTO_ROUND | {"extra_config": {"lm_head": {"bits": 4, "group_size": 128}}}
    path = write(tmp_path, config, tensors_of(gptq, {"lm_head": gptq}), tie_word_embeddings=True)
    described = describe(str(path))
    assert not described.spec.tied and "lm_head.qweight" in encoded(described)


@pytest.mark.parametrize(("prefix", "head"), [("language_model.model.", "language_model.lm_head"), ("", "lm_head")])
def test_lists_may_call_modules_as_another_wrapper_does(tmp_path, prefix, head):
    """As the list is written, as the file has it, or as transformers calls it."""
    for number, body in enumerate({"model.", "model.language_model.", "language_model.model.", prefix}):
        config = PACKED | {"ignore": ["lm_head", f"{body}layers.1.mlp.up_proj"]}
        tensors = tensors_of(packed, {"layers.1.mlp.up_proj": plain}, prefix, head)
        with capture_logs() as logs:
            described = describe(str(write(tmp_path / str(number), config, tensors)))
        assert len(encoded(described)) == 13
        assert not [entry for entry in logs if "full precision" in entry["event"]]


def test_what_is_said_of_activations_and_of_keys_is_passed_over(tmp_path):
    tensors = tensors_of(lambda rows, columns: packed(rows, columns) | {".input_scale": floats(1)})
    tensors |= {f"model.layers.0.self_attn.{kind}_scale": floats(1) for kind in "kv"}
    config = PACKED | {"kv_cache_scheme": {"num_bits": 8, "type": "float"}}
    with capture_logs() as logs:
        described = describe(str(write(tmp_path, config, tensors)))
    assert len(encoded(described)) == 14
    assert [entry for entry in logs if "kv_cache_scheme is passed over" in entry["event"]]
    assert "k_scale" in refused(write(tmp_path / "plain", None, tensors_of(plain) | {"lm_head.k_scale": floats(1)}))


def test_biases_of_zeros_that_autogptq_writes_are_passed_over(tmp_path):
    tensors = tensors_of(lambda rows, columns: gptq(rows, columns) | {".bias": halves(rows)})
    assert len(encoded(describe(str(write(tmp_path / "gptq", GPTQ, tensors))))) == 14
    tensors = tensors_of(lambda rows, columns: packed(rows, columns) | {".bias": halves(rows)})
    assert "bias" in refused(write(tmp_path / "packed", PACKED, tensors))


def test_biases_that_the_architecture_has_stay_plain(tmp_path):
    tensors = tensors_of(packed)
    tensors |= {f"{name.removesuffix('.weight_packed')}.bias": halves(tensor.shape[0])
                for name, tensor in tensors.items() if "self_attn" in name and name.endswith("packed")}  # fmt: skip
    described = describe(str(write(tmp_path, PACKED, tensors, attention_bias=True)))
    (bias,) = [source for source in described.tensors if source.name == "model.layers.0.self_attn.k_proj.bias"]
    assert bias.place == Place(role="qkv_bias", layer=0, first_row=HIDDEN) and bias.encoding.name == "F16"


def test_a_model_that_forgot_its_config_says_where_it_is(tmp_path):
    message = refused(write(tmp_path, None, tensors_of(gptq)))
    assert ".g_idx" in message and "quantize_config.json" in message


def test_experts_have_ranges_of_their_own_and_routers_stay_plain(tmp_path):
    experts, inner = 3, 128
    shapes = {"w1": (inner, HIDDEN), "w2": (HIDDEN, inner), "w3": (inner, HIDDEN)}
    tensors = {name: tensor for name, tensor in tensors_of(packed).items() if ".mlp." not in name}
    for layer in range(2):
        base = f"model.layers.{layer}.block_sparse_moe"
        tensors[f"{base}.gate.weight"] = halves(experts, HIDDEN)
        for expert in range(experts):
            for name, shape in shapes.items():
                module = f"{base}.experts.{expert}.{name}"
                tensors |= {module + suffix: tensor for suffix, tensor in packed(*shape).items()}
    moe = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": experts}
    config = PACKED | {"ignore": ["lm_head", "re:.*block_sparse_moe.gate$"]}
    described = describe(str(write(tmp_path, config, tensors, intermediate_size=inner, **moe)))
    places = [
        (source.place.expert, source.place.first_row, source.shape)
        for source in described.tensors
        if source.place.layer == 1 and source.place.role == "expert_gate_up" and source.place.side == "values"
    ]
    assert sorted(places) == [(expert, row, (inner, HIDDEN)) for expert in range(experts) for row in (0, inner)]
    (router,) = [s for s in described.tensors if s.place.role == "router" and s.place.layer == 0]
    assert router.encoding.name == "F16"


def test_a_fused_projection_is_one_matrix(tmp_path):
    tensors = {name: tensor for name, tensor in tensors_of(packed).items() if "layers" not in name or "norm" in name}
    shapes = {"self_attn.qkv_proj": (512, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
              "mlp.gate_up_proj": (2 * INTERMEDIATE, HIDDEN), "mlp.down_proj": (HIDDEN, INTERMEDIATE)}  # fmt: skip
    for layer in range(2):
        for name, shape in shapes.items():
            tensors |= {f"model.layers.{layer}.{name}{suffix}": t for suffix, t in packed(*shape).items()}
    config = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "pad_token_id": None}
    described = describe(str(write(tmp_path, PACKED, tensors, **config)))
    (qkv,) = [s for s in described.tensors if s.name == "model.layers.0.self_attn.qkv_proj.weight_packed"]
    assert (qkv.place, qkv.shape) == (Place(role="qkv", layer=0), (512, HIDDEN))


@pytest.mark.parametrize(
    ("config", "tensors", "sides"),
    [
        (
            {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
            {"_blocks": octets(4, 96, 2, 16), "_scales": octets(4, 96, 2)},
            [("values", "mxfp4:4:1x32", (96, 64), 96 * 32), ("scale", "U8", (96, 2), 96 * 2)],
        ),
        (
            FP8,
            {"": eights(4, 96, 64), "_scale_inv": floats(4, 1, 1)},
            [("values", "float8:8:128x128", (96, 64), 96 * 64), ("scale", "F32", (1, 1), 4)],
        ),
    ],
    ids=["mxfp4", "fp8"],
)
def test_a_tensor_of_all_experts_becomes_ranges_of_each(tmp_path, config, tensors, sides):
    from safetensors.torch import save_file

    module = "model.layers.0.mlp.experts.gate_up_proj"
    save_file({module + suffix: tensor for suffix, tensor in tensors.items()}, tmp_path / "model.safetensors")
    header = read_weights_header(tmp_path / "model.safetensors", "model.safetensors")
    matrices = MatrixRanges(
        names=LLAMA.names,
        quantisation=read_quantisation(Values({"quantization_config": config}, "config.json")),
        stored=StoredTensors(
            dict.fromkeys(header.tensors, "model.safetensors"), {"model.safetensors": header}, "index"
        ),
    )
    expected = Expected(module, (4, 96, 64), Place(role="expert_gate_up", layer=0))
    ranges = matrices.of([expected])
    assert [(s.place.expert, s.place.side, s.encoding.name, s.shape, s.length) for s in ranges] == [
        (expert, *side) for side in sides for expert in range(4)
    ]
    for source in ranges:
        stored: StoredTensor = header.tensors[source.name]
        assert source.offset == stored.offset + source.place.expert * stored.length // 4


def test_experts_in_full_precision_stay_together(tmp_path):
    from safetensors.torch import save_file

    module = "model.layers.0.mlp.experts.down_proj"
    save_file({module: torch.zeros(2, 8, 4, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    header = read_weights_header(tmp_path / "model.safetensors", "model.safetensors")
    stored = StoredTensors({module: "model.safetensors"}, {"model.safetensors": header}, "index")
    for config in ({}, {"quantization_config": {"quant_method": "mxfp4"}}):
        quantisation = read_quantisation(Values(config, "config.json"))
        matrices = MatrixRanges(names=LLAMA.names, quantisation=quantisation, stored=stored)
        (source,) = matrices.of([Expected(module, (2, 8, 4), Place(role="expert_down", layer=0))])
        assert (source.shape, source.place.expert, source.encoding.name) == ((2, 8, 4), None, "BF16")


@pytest.mark.parametrize(
    ("said", "dtype"),
    [({"torch_dtype": "bfloat16"}, "bfloat16"), ({"torch_dtype": None, "dtype": "float32"}, "float32"),
     ({"torch_dtype": None}, "bfloat16"), ({"torch_dtype": 7}, "bfloat16")],
)  # fmt: skip
def test_the_dtype_is_the_configs_whatever_the_plain_tensors_are(tmp_path, said, dtype):
    described = describe(str(write(tmp_path, PACKED, tensors_of(packed), **said)))
    assert described.spec.stored_dtype == dtype
    assert CONFIG["torch_dtype"] == "float16"
