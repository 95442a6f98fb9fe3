"""Ways of quantising that are not read are refused by their names, before a weights file is opened."""

import json

import pytest

from hydra.protocol.refusal import RefusalError
from hydra.store.models.model_dir import describe
from tests.unit.store.quantised.checkpoints import AUTO_ROUND, AWQ, CONFIG, FLOAT8, FP8, GPTQ, INT4, NF4, compressed

INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
PACKED = compressed("pack-quantized", INT4)
CONFIGS = [
    ({"quant_method": "exl2", "bits": 4.65}, "EXL2"),
    ({"quant_method": "exl3", "bits": 4.0}, "EXL3"),
    ({"quant_method": "hqq", "quant_config": {}}, "HQQ"),
    ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}}, "torchao"),
    ({"quant_method": "aqlm", "in_group_size": 8}, "AQLM"),
    ({"quant_method": "spqr", "bits": 3}, "SpQR"),
    ({"quant_method": "vptq"}, "VPTQ"),
    ({"quant_method": "marlin"}, "Marlin"),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "ModelOpt"),
    ({"quant_method": "fbgemm_fp8"}, "fbgemm"),
    ({"quant_method": "quark"}, "Quark"),
    ({"quant_method": "bitnet"}, "BitNet"),
    ({"quant_method": "tomorrow's"}, "tomorrow's"),
    ({"quant_method": None}, "quant_method"),
    ({"quant_method": ["gptq"]}, "quant_method"),
    ({"bits": 4, "group_size": 64}, "quant_method"),
    ({"load_in_8bit": True}, "load_in_8bit"),
    (NF4 | {"load_in_4bit": False, "_load_in_4bit": False, "load_in_8bit": True}, "load_in_8bit"),
    (NF4 | {"bnb_4bit_quant_type": "fp4"}, "'fp4'"),
    (GPTQ | {"bits": 3}, "bits is 3"),
    (GPTQ | {"bits": 2}, "bits is 2"),
    (GPTQ | {"checkpoint_format": "marlin"}, "'marlin'"),
    (GPTQ | {"checkpoint_format": "gptq_p"}, "'gptq_p'"),
    (GPTQ | {"is_marlin_format": True}, "is_marlin_format"),
    (GPTQ | {"pack_dtype": "int16"}, "pack_dtype"),
    (GPTQ | {"rotation": "hadamard"}, "rotation"),
    (GPTQ | {"adapter": {"name": "lora"}}, "adapter"),
    (GPTQ | {"dynamic": {"+:.*down.*": {"bits": 3}}}, "bits is 3"),
    (AUTO_ROUND | {"bits": 2}, "bits is 2"),
    (AUTO_ROUND | {"data_type": "mx_fp"}, "mx_fp"),
    (AUTO_ROUND | {"packing_format": "auto_round:llm_compressor"}, "llm_compressor"),
    (AUTO_ROUND | {"rotation_config": {"x": 1}}, "rotation_config"),
    (AUTO_ROUND | {"extra_config": {"model.layers.0.mlp.up_proj": {"bits": 2}}}, "bits is 2"),
    (AWQ | {"version": "gemv"}, "'gemv'"),
    (AWQ | {"bits": 8}, "bits is 8"),
    (FP8 | {"expert_dtype": "fp4"}, "expert_dtype"),
    (FP8 | {"fmt": "e5m2"}, "e5m2"),
    (FP8 | {"modules_to_convert": ["model.embed_tokens"]}, "modules_to_convert"),
    (compressed("marlin-24", INT4), "marlin-24"),
    (compressed("sparse-24-bitmask", INT4), "sparse-24-bitmask"),
    (compressed("mxfp8-quantized", {"num_bits": 8, "type": "float", "group_size": 32}), "mxfp8-quantized"),
    (compressed("pack-quantized", INT4 | {"num_bits": 3}), "num_bits is 3"),
    (compressed("pack-quantized", INT4 | {"strategy": "tensor"}), "'tensor'"),
    (compressed("pack-quantized", INT4 | {"actorder": "other"}), "actorder"),
    (compressed("pack-quantized", INT4 | {"type": "float"}), "float"),
    (compressed("pack-quantized", INT4 | {"dynamic": True}), "dynamic"),
    (compressed("pack-quantized", INT4 | {"shift": 3}), "shift"),
    (compressed("int-quantized", INT8 | {"strategy": "block", "block_structure": [128, 128]}), "'block'"),
    (compressed("int-quantized", INT8 | {"num_bits": 6}), "num_bits is 6"),
    (compressed("float-quantized", FLOAT8 | {"symmetric": False}), "symmetric"),
    (compressed("float-quantized", FLOAT8 | {"num_bits": 6}), "6 bits"),
    (PACKED | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
    (PACKED | {"transform_config": {"config_groups": {"u": {}}}}, "transform_config"),
    (PACKED | {"quantization_status": "calibration"}, "calibration"),
    (PACKED | {"rotations": 1}, "rotations"),
    (compressed("pack-quantized", INT4, ignore=["re:(a+)+"]), "(a+)+"),
]  # fmt: skip


def refusal_of(tmp_path, **said):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | said))
    with pytest.raises(RefusalError) as caught:
        describe(str(tmp_path))
    return caught.value.refusal


@pytest.mark.parametrize(("config", "names"), CONFIGS, ids=range(len(CONFIGS)))
def test_what_is_not_read_is_refused_by_name(tmp_path, config, names):
    refusal = refusal_of(tmp_path, quantization_config=config)
    assert (refusal.code, names in refusal.message) == ("unsupported", True), refusal.message
    assert refusal.message.startswith("config.json: quantization_config")


@pytest.mark.parametrize("key", ["quantization", "compression_config"])
def test_the_other_places_of_a_config_are_read_too(tmp_path, key):
    refusal = refusal_of(tmp_path, **{key: {"quant_method": "aqlm", "bits": 4}})
    assert refusal.code == "unsupported" and refusal.message.startswith(f"config.json: {key}")
    assert ("MLX" in refusal.message) is (key == "quantization")


def test_a_refusal_says_what_to_use_instead(tmp_path):
    message = refusal_of(tmp_path, quantization_config={"quant_method": "exl3"}).message
    assert "Use a checkpoint" in message and "GGUF" in message and "AWQ" in message
