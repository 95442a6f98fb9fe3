"""All experts of a layer in one tensor: each expert's range holds its own matrix, however the tensor lies."""

import math

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from hydra.protocol.model.encoding import SIDE_ENCODINGS, GroupEncoding, encoding_of
from hydra.protocol.model.layout import part_shapes
from hydra.protocol.model.model_spec import Described
from hydra.protocol.refusal import RefusalError
from hydra.store.models.library import LocalLibrary
from tests.unit.store.test_name_prefix import bytes_of, configure

LIBRARY = LocalLibrary()
HIDDEN, INNER, EXPERTS, LAYERS = 64, 32, 3, 2
KEPT = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
MATRICES = {"expert_gate_up": (2 * INNER, HIDDEN), "expert_down": (HIDDEN, INNER)}
CODES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """gpt-oss as transformers saves it, in bfloat16."""
    path = tmp_path_factory.mktemp("oss")
    torch.manual_seed(1)
    config = transformers.GptOssConfig(
        hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_local_experts=EXPERTS, num_experts_per_tok=2, vocab_size=101,
    )  # fmt: skip
    transformers.GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture
def quantised(plain, tmp_path):
    """The same with random experts in MXFP4, as it is published."""
    torch.manual_seed(2)
    tensors = load_file(plain / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        _, columns, rows = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (EXPERTS, rows, columns // 32, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(120, 130, (EXPERTS, rows, columns // 32), dtype=torch.uint8)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((plain / "config.json").read_text())
    configure(tmp_path, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": KEPT})
    return tmp_path


def ranges_of(described: Described, role: str, layer: int) -> dict[tuple[int | None, str], object]:
    return {
        (tensor.place.expert, tensor.place.side): tensor
        for tensor in described.tensors
        if (tensor.place.role, tensor.place.layer) == (role, layer)
    }


def refused(directory) -> tuple[str, str]:
    with pytest.raises(RefusalError) as caught:
        LIBRARY.describe(str(directory))
    return caught.value.refusal.code, caught.value.refusal.message


def test_transposed_matrices_are_a_range_for_each_expert(plain):
    described, stored = LIBRARY.describe(str(plain)), load_file(plain / "model.safetensors")
    for role, (rows, columns) in MATRICES.items():
        ranges = ranges_of(described, role, 1)
        assert set(ranges) == {(expert, "values") for expert in range(EXPERTS)}
        whole = stored[f"model.layers.1.mlp.experts.{role.removeprefix('expert_')}_proj"]
        for (expert, _), tensor in ranges.items():
            assert (tensor.shape, tensor.place.converted) == ((rows, columns), "transposed")
            lying = torch.frombuffer(bytearray(bytes_of(plain, tensor)), dtype=torch.bfloat16).view(columns, rows)
            assert torch.equal(lying, whole[expert])
    size, layer = described.spec.layer_sizes[0], part_shapes(described.spec, 0)
    assert size.numbers * 2 == size.stored_bytes == 2 * sum(math.prod(shape) for shape in layer.values())


def test_mxfp4_is_a_range_of_codes_and_one_of_scales_for_each_expert(quantised):
    described, stored = LIBRARY.describe(str(quantised)), load_file(quantised / "model.safetensors")
    for role, (rows, columns) in MATRICES.items():
        ranges = ranges_of(described, role, 0)
        assert set(ranges) == {(expert, side) for expert in range(EXPERTS) for side in ("values", "scale")}
        name = f"model.layers.0.mlp.experts.{role.removeprefix('expert_')}_proj"
        theirs = convert_moe_packed_tensors(stored[f"{name}_blocks"], stored[f"{name}_scales"], dtype=torch.float32)
        for expert in range(EXPERTS):
            values, scale = ranges[expert, "values"], ranges[expert, "scale"]
            assert values.encoding == GroupEncoding("mxfp4", 4, 1, 32) == encoding_of("mxfp4:4:1x32")
            assert values.shape == (rows, columns) and values.encoding.n_bytes(values.shape) == values.length
            assert (scale.encoding, scale.shape) == (SIDE_ENCODINGS["U8"], (rows, columns // 32))
            codes = torch.frombuffer(bytearray(bytes_of(quantised, values)), dtype=torch.uint8).view(rows, -1)
            numbers = CODES[torch.stack((codes & 15, codes >> 4), -1).flatten(1).long()]
            powers = torch.frombuffer(bytearray(bytes_of(quantised, scale)), dtype=torch.uint8).view(rows, -1).int()
            assert torch.equal(torch.ldexp(numbers, powers.repeat_interleave(32, 1) - 127), theirs[expert].T)
        assert ranges_of(described, f"{role}_bias", 0).keys() == {(None, "values")}
    assert described.spec.stored_dtype == "bfloat16"
    experts = sum(EXPERTS * rows * columns for rows, columns in MATRICES.values())
    size = described.spec.layer_sizes[0]
    assert size.kept_bytes == experts // 2 + experts // 32 * 2 + EXPERTS * len(MATRICES) * 64  # and a table of codes
    assert size.stored_bytes - 2 * size.numbers == experts // 2 + experts // 32


def test_what_is_said_to_be_unconverted_is_plain(plain, quantised):
    (quantised / "model.safetensors").write_bytes((plain / "model.safetensors").read_bytes())
    for kept in ([*KEPT, "model.layers.*.mlp.experts"], ["mlp.experts"], ["model.layers.0", "model.layers.1"]):
        configure(quantised, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": kept})
        places = [tensor.place for tensor in LIBRARY.describe(str(quantised)).tensors]
        assert {place.converted for place in places if place.role == "expert_down"} == {"transposed"}


@pytest.mark.parametrize(
    ("quantised_as", "code", "names"),
    [
        ({"modules_to_not_convert": ["model.layers.1.mlp.experts"]}, "bad_model", "in full precision"),
        ({"modules_to_not_convert": "lm_head"}, "bad_model", "modules_to_not_convert"),
        ({"modules_to_not_convert": [3]}, "bad_model", "modules_to_not_convert"),
        ({"modules_to_not_convert": ["mlp.experts"]}, "bad_model", "gate_up_proj_blocks'"),
        ({"quant_method": "exl3"}, "unsupported", "exl3"),
    ],
)
def test_another_quantisation_is_refused_by_name(quantised, quantised_as, code, names):
    configure(quantised, quantization_config={"quant_method": "mxfp4"} | quantised_as)
    reached = refused(quantised)
    assert (reached[0], names in reached[1]) == (code, True), reached


def test_a_pattern_of_many_stars_takes_no_time(quantised):
    configure(quantised, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["*e" * 40 + "x"]})
    assert "too complex" in refused(quantised)[1]


BLOCKS, SCALES = (f"model.layers.1.mlp.experts.down_proj_{kind}" for kind in ("blocks", "scales"))


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        (BLOCKS, lambda tensor: tensor[:, :, :, :8].contiguous(), "bad_model"),
        (BLOCKS, lambda tensor: tensor.to(torch.int8), "bad_model"),
        (BLOCKS, lambda tensor: None, "bad_model"),
        (SCALES, lambda tensor: tensor[:, :-1].contiguous(), "bad_model"),
        (SCALES, lambda tensor: tensor.to(torch.float32), "bad_model"),
        (SCALES, lambda tensor: None, "bad_model"),
        ("model.layers.1.self_attn.sinks", lambda tensor: tensor[:2], "bad_model"),
        ("model.layers.1.mlp.experts.down_proj_bias", lambda tensor: tensor.T.contiguous(), "bad_model"),
    ],
)
def test_a_tensor_of_another_kind_is_refused_by_name(quantised, name, change, code):
    path = quantised / "model.safetensors"
    tensors = load_file(path)
    changed = change(tensors.pop(name))
    save_file(tensors if changed is None else tensors | {name: changed}, path)
    reached = refused(quantised)
    assert (reached[0], name in reached[1]) == (code, True), reached


def test_a_plain_matrix_of_another_shape_is_refused_by_name(plain, tmp_path):
    name = "model.layers.1.mlp.experts.gate_up_proj"
    for change in (lambda tensor: tensor[:, :-1], lambda tensor: tensor[:2]):
        tensors = load_file(plain / "model.safetensors")
        tensors[name] = change(tensors[name]).contiguous()
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text((plain / "config.json").read_text())
        code, message = refused(tmp_path)
        assert code == "bad_model" and name in message


@pytest.mark.parametrize("transposed", [True, False])
def test_qwen_3_vl_lies_either_way(tmp_path, transposed):
    """As it was first published, and as other tools write it; transformers tells them by their shapes, too."""
    rows, columns = 2 * INNER + 16, HIDDEN
    config = {
        "architectures": ["Qwen3VLMoeForConditionalGeneration"], "model_type": "qwen3_vl_moe",
        "text_config": {
            "hidden_size": HIDDEN, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 11, "num_experts": EXPERTS,
            "num_experts_per_tok": 1, "moe_intermediate_size": rows // 2,
        },
    }  # fmt: skip
    layer = {
        "mlp.gate.weight": (EXPERTS, HIDDEN), "input_layernorm.weight": (HIDDEN,),
        "post_attention_layernorm.weight": (HIDDEN,),
        "self_attn.q_norm.weight": (16,), "self_attn.k_norm.weight": (16,), "self_attn.q_proj.weight": (64, HIDDEN),
        "self_attn.k_proj.weight": (32, HIDDEN), "self_attn.v_proj.weight": (32, HIDDEN),
        "self_attn.o_proj.weight": (HIDDEN, 64), "mlp.experts.gate_up_proj": (EXPERTS, rows, columns),
        "mlp.experts.down_proj": (EXPERTS, columns, rows // 2),
    }  # fmt: skip
    ends = {"embed_tokens.weight": (11, HIDDEN), "norm.weight": (HIDDEN,)}
    body = {f"layers.0.{name}": shape for name, shape in layer.items()} | ends
    tensors = {f"model.language_model.{name}": torch.randn(shape) for name, shape in body.items()}
    whole = tensors["model.language_model.layers.0.mlp.experts.gate_up_proj"].clone()
    if transposed:
        tensors = {name: one.transpose(1, 2).contiguous() if one.dim() == 3 else one for name, one in tensors.items()}
    save_file(tensors | {"lm_head.weight": torch.randn(11, HIDDEN)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    configure(tmp_path, **config)
    for (expert, _), tensor in ranges_of(LIBRARY.describe(str(tmp_path)), "expert_gate_up", 0).items():
        assert tensor.place.converted == ("transposed" if transposed else "") and tensor.shape == (rows, columns)
        numbers = torch.frombuffer(bytearray(bytes_of(tmp_path, tensor)), dtype=torch.float32)
        matrix = numbers.view(columns, rows).T if transposed else numbers.view(rows, columns)
        assert torch.equal(matrix, whole[expert])
