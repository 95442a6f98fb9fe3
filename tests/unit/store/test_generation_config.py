"""generation_config.json: end tokens and default sampling, taken as published or refused by key."""

import json

import pytest

from hydra.protocol.refusal import RefusalError
from hydra.protocol.sampling import DefaultSampling
from hydra.store.model_dir import describe

QWEN = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}


def spoken(path, said):
    (path / "generation_config.json").write_text(json.dumps(said))
    return describe(str(path)).spec


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({}, DefaultSampling()),
        (QWEN, DefaultSampling(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)),
        (QWEN | {"do_sample": False}, DefaultSampling(repetition_penalty=1.05)),
        ({"temperature": 0.6, "top_k": 5}, DefaultSampling()),
        ({"do_sample": True, "min_p": 0, "top_p": 1, "top_k": None}, DefaultSampling(min_p=0.0, top_p=1.0)),
    ],
)
def test_default_sampling_is_what_the_publisher_says(copy_of, said, meant):
    default = spoken(copy_of("single"), said).default_sampling
    assert default == meant
    assert all(type(value) is float for value in (default.temperature, default.min_p, default.top_p) if value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "0.7"),
        ("temperature", -1),
        ("temperature", 1e9),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("top_k", 2.0),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("do_sample", 1),
        ("eos_token_id", 101),
        ("eos_token_id", [[2]]),
        ("bos_token_id", True),
    ],
)
def test_values_outside_their_ranges_are_refused(copy_of, key, value):
    with pytest.raises(RefusalError, match=f"generation_config.json: {key}") as caught:
        spoken(copy_of("single"), {"do_sample": True} | {key: value})
    assert caught.value.refusal.code == "bad_model"


def test_the_file_without_end_tokens_leaves_them_to_the_config(copy_of):
    assert spoken(copy_of("single"), {"do_sample": True}).eos_ids == (2,)
