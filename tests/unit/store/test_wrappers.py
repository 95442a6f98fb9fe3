"""Multimodal checkpoints are read as the text model that they hold; what else lies in them is said once."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs

from hydra.protocol.model.layer_spec import MoeSpec
from hydra.protocol.refusal import RefusalError
from hydra.store.models.config import read_config
from hydra.store.models.families.wrappers import MULTIMODAL
from hydra.store.models.library import LocalLibrary
from tests.unit.store.test_config_families import MINISTRAL_ROPE, SIZES, assert_filled, windows
from tests.unit.store.test_name_prefix import bytes_of, configure, prefixed, renamed

SECTIONS = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
VISION = {"hidden_size": 1152, "num_hidden_layers": 27, "sliding_window": 3, "model_type": "seen"}


def config_of(path, architecture, text, **outer):
    said = {"architectures": [architecture], "text_config": text, "vision_config": VISION} | outer
    (path / "config.json").write_text(json.dumps(said))
    return read_config(path)


def gemma3(path, text, **outer):
    return config_of(path, "Gemma3ForConditionalGeneration", text, model_type="gemma3", **outer)


def mistral3(path, text, **outer):
    return config_of(path, "Mistral3ForConditionalGeneration", SIZES | text, model_type="mistral3", **outer)


def qwen3_vl(path, text, **outer):
    return config_of(path, "Qwen3VLForConditionalGeneration", SIZES | text, model_type="qwen3_vl", **outer)


def qwen3_vl_moe(path, text, **outer):
    text = SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48} | text
    return config_of(path, "Qwen3VLMoeForConditionalGeneration", text, model_type="qwen3_vl_moe", **outer)


def test_gemma_3_4b_leaves_out_what_its_text_model_has_by_default(tmp_path):
    published = {
        "hidden_size": 2560, "intermediate_size": 10_240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    }  # fmt: skip
    config = gemma3(tmp_path, published, eos_token_id=[1, 106], boi_token_index=255_999, mm_tokens_per_image=256)
    shape = config.shape
    attention = shape.decoder.layer(0).attention
    assert (shape.architecture, shape.n_layers, shape.vocab) == ("Gemma3ForConditionalGeneration", 34, 262_208)
    assert (attention.n_heads, attention.n_kv_heads, attention.head_dim, attention.window) == (8, 4, 256, 1024)
    assert shape.tied and shape.max_positions == 131_072 and config.speech.eos_ids == (1, 106)
    assert not gemma3(tmp_path, published | {"tie_word_embeddings": True}, tie_word_embeddings=False).shape.tied


def test_mistral_small_has_either_of_two_text_models(tmp_path):
    small = {"model_type": "mistral", "head_dim": 128, "rope_theta": 1e9, "sliding_window": None}
    shape = mistral3(tmp_path, small, image_token_index=10, spatial_merge_size=2).shape
    assert (windows(shape), shape.decoder.ropes[0].theta, shape.tied) == ((0,) * 4, 1e9, True)
    assert mistral3(tmp_path, SIZES | {k: v for k, v in small.items() if k != "model_type"}).shape == shape
    new = {"model_type": "ministral3", "head_dim": 128, "rope_parameters": MINISTRAL_ROPE}
    shape = mistral3(tmp_path, new, tie_word_embeddings=False).shape
    assert (shape.decoder.ropes[0].query_growth, shape.tied) == (0.1, False)
    for outer, inner, tied in ((None, False, False), (None, True, True), (True, False, True), (None, None, True)):
        said = mistral3(tmp_path, small | {"tie_word_embeddings": inner}, tie_word_embeddings=outer)
        assert said.shape.tied is tied


def test_qwen_3_vl_turns_text_like_any_other_model(tmp_path):
    text = {
        "model_type": "qwen3_vl_text", "head_dim": 128, "rope_theta": 5_000_000, "rope_scaling": SECTIONS,
        "bos_token_id": 43, "eos_token_id": 45, "attention_bias": False,
    }  # fmt: skip
    config = qwen3_vl(tmp_path, text, tie_word_embeddings=True, image_token_id=99, video_token_id=98)
    (layer,) = config.shape.decoder.kinds
    assert (layer.attention.rope.kind, layer.attention.rope.theta) == ("default", 5e6)
    assert layer.attention.qk_norm == layer.norm and layer.attention.window == 0 and config.shape.tied
    assert (config.speech.bos_id, config.speech.eos_ids) == (43, (45,))
    assert not qwen3_vl(tmp_path, {"head_dim": 128}).shape.tied


def test_qwen_3_vl_moe_always_makes_weights_sum_to_one(tmp_path):
    shape = qwen3_vl_moe(tmp_path, {"head_dim": 128, "mlp_only_layers": [1], "rope_scaling": SECTIONS}).shape
    moe = MoeSpec(n_experts=4, top_k=2, intermediate=48, activation="silu", normalised=True)
    assert [layer.feed_forward == moe for layer in shape.decoder.layers] == [True, False, True, True]


@pytest.mark.parametrize("read", [qwen3_vl, qwen3_vl_moe])
def test_the_tables_of_names_fill_every_canonical_matrix(tmp_path, read):
    config = read(tmp_path, {"head_dim": 16, "decoder_sparse_step": 2} if read is qwen3_vl_moe else {"head_dim": 16})
    assert_filled(config.shape, config.names)


REFUSED = [
    (gemma3, {"model_type": "gemma2"}, {}, "unsupported", "text_config: model_type is 'gemma2'"),
    (gemma3, {"hidden_size": "x"}, {}, "bad_model", "text_config: hidden_size"),
    (gemma3, {"use_bidirectional_attention": True}, {}, "unsupported", "use_bidirectional_attention"),
    (gemma3, {}, {"tie_word_embeddings": 1}, "bad_model", "config.json: tie_word_embeddings"),
    (gemma3, {}, {"text_config": None}, "bad_model", "has no text_config"),
    (gemma3, {}, {"text_config": [1]}, "bad_model", "text_config is not an object"),
    (gemma3, {}, {"model_type": "gemma3_text"}, "unsupported", "model_type"),
    (gemma3, {}, {"quantization_config": {"quant_method": "exl3"}}, "unsupported", "exl3"),
    (mistral3, {"quantization_config": {"quant_method": "hqq"}}, {}, "unsupported", "hqq"),
    (mistral3, {"model_type": "llama"}, {}, "unsupported", "'mistral' or 'ministral3'"),
    (mistral3, {"layer_types": ["sliding_attention"] * 4}, {}, "unsupported", "layer_types"),
    (qwen3_vl, {"rope_scaling": SECTIONS | {"rope_type": "axial"}}, {}, "unsupported", "axial"),
    (qwen3_vl, {"sliding_window": 8}, {}, "unsupported", "sliding_window"),
    (qwen3_vl_moe, {"norm_topk_prob": False}, {}, "unsupported", "norm_topk_prob"),
]


@pytest.mark.parametrize(("read", "text", "outer", "code", "names"), REFUSED)
def test_what_is_not_computed_is_refused_by_name(tmp_path, read, text, outer, code, names):
    with pytest.raises(RefusalError) as refused:
        read(tmp_path, text, **outer) if "model_type" not in outer else config_of(
            tmp_path, "Gemma3ForConditionalGeneration", text, **outer
        )
    assert (refused.value.refusal.code, names in refused.value.refusal.message) == (code, True), refused.value.refusal


def test_an_unknown_class_is_told_all_that_are_known(tmp_path):
    with pytest.raises(RefusalError) as refused:
        config_of(tmp_path, "LlavaForConditionalGeneration", {})
    assert all(name in refused.value.refusal.message for name in (*MULTIMODAL, "GptOssForCausalLM"))


# ---------------------------------------------------------------- what lies in the files


BESIDE = {
    "older": ("language_model.model.", "language_model.", ""),
    "newer": ("model.language_model.", "", "model."),
}


@pytest.mark.parametrize("layout", BESIDE)
def test_other_parts_are_said_once_and_not_warned_of(saved, copy_of, layout):
    directory, (body, head, more) = copy_of("single"), BESIDE[layout]
    renamed(directory, prefixed(body, head))
    configure(directory, architectures=["Mistral3ForConditionalGeneration"], model_type="mistral3", text_config={
        **json.loads((directory / "config.json").read_text()), "model_type": "mistral", "sliding_window": None,
    }, tie_word_embeddings=False)  # fmt: skip
    beside = (
        f"{more}visual.blocks.0.attn.qkv.weight", f"{more}vision_tower.transformer.layers.0.attention.q_proj.weight",
        f"{more}multi_modal_projector.linear_1.weight", "audio_tower.layers.1.fc1.weight", "mtp.fc.weight",
    )  # fmt: skip
    path = directory / "model.safetensors"
    save_file(load_file(path) | {name: torch.ones(3) for name in beside}, path)
    with capture_logs() as logs:
        described = LocalLibrary().describe(str(directory))
    assert {line["log_level"] for line in logs} == {"info"}
    assert {line["event"].split(" is not")[0]: line["n_tensors"] for line in logs} == {
        "the model's audio part": 1,
        "the model's vision part": 3,
        "the model's multi-token prediction part": 1,
    }
    original = LocalLibrary().describe(str(saved / "single"))
    for here, there in zip(described.tensors, original.tensors, strict=True):
        assert here.place == there.place and bytes_of(directory, here) == bytes_of(saved / "single", there)
    assert described.spec.architecture == "Mistral3ForConditionalGeneration"


def test_what_nobody_knows_is_still_warned_of(copy_of):
    path = copy_of("single") / "model.safetensors"
    save_file(load_file(path) | {"smell_tower.weight": torch.ones(3), "visual.x": torch.ones(3)}, path)
    with capture_logs() as logs:
        LocalLibrary().describe(str(path.parent))
    assert [(line["log_level"], line.get("first")) for line in logs] == [
        ("info", None),
        ("warning", "smell_tower.weight"),
    ]
