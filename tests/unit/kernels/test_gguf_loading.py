"""A model in a GGUF file is loaded by its ranges and generates what transformers does, cut into stages anywhere."""

import pytest

from hydra.store.models.library import LocalLibrary
from tests.unit.kernels.bench import Pipeline, Published, Row, greedy, prompt
from tests.unit.kernels.family_models import MOE, Shape, random_model, rope
from tests.unit.kernels.gguf_models import write_gguf

PLAIN = (  # families in which the converter changes nothing but names
    Shape("plain", "Qwen2Config", 1, {"tie_word_embeddings": True}),
    Shape("all-sparse", "Qwen3MoeConfig", 0, {**MOE, "norm_topk_prob": True}),
    Shape("quarter-head", "PhiConfig", 0, {"num_key_value_heads": 4, **rope(partial_rotary_factor=0.25)}),
    Shape("window", "Phi3Config", 0, {"sliding_window": 9, "num_key_value_heads": 1}),
)


@pytest.mark.parametrize("shape", PLAIN, ids=lambda shape: shape.name)
def test_plain_numbers_of_a_gguf_file_generate_the_same_tokens(tmp_path, shape):
    reference = random_model(shape, 0.5)
    reference.save_pretrained(tmp_path / "saved")
    tied = bool(reference.config.tie_word_embeddings)
    write_gguf(tmp_path / "m.gguf", tmp_path / "saved", reference.config, tied=tied)
    described = LocalLibrary(cache_dir=tmp_path / "cache").describe(str(tmp_path / "m.gguf"))
    model = Published(tmp_path, described, reference)
    ids = prompt(3, 12)
    expected = greedy(model, ids, 16)
    for cuts in ((), (1, 3)):
        assert Pipeline(model, cuts).generate(Row(list(ids), list(range(8))), 16) == expected
