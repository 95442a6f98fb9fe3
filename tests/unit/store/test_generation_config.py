"""generation_config.json: end tokens and default sampling, taken as published; what cannot be kept is warned of."""

import json

import pytest
from structlog.testing import capture_logs

from hydra.protocol.refusal import RefusalError
from hydra.protocol.sampling import DefaultSampling
from hydra.store.models.model_dir import describe

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
    ("key", "value", "meant"),
    [
        ("top_k", -1, 0),  # off, as published for other servers
        ("top_k", -7, 0),
        ("top_k", "20", 20),
        ("top_k", 2.5, None),
        ("top_k", True, None),
        ("top_p", 0.0, 1e-6),  # only the best one
        ("top_p", 1.5, 1.0),
        ("top_p", -0.1, None),
        ("temperature", "0.7", 0.7),
        ("temperature", "warm", None),
        ("temperature", "nan", None),
        ("temperature", -1, None),
        ("temperature", 1e9, 100.0),
        ("temperature", 10**400, 100.0),
        ("temperature", [0.7], None),
        ("min_p", 2, None),
        ("min_p", -0.5, None),
        ("repetition_penalty", 0, None),
        ("repetition_penalty", -(10**400), None),
        ("repetition_penalty", 1e-30, 0.01),
        ("repetition_penalty", 1e30, 100.0),
    ],
)
def test_a_sampling_value_that_cannot_be_kept_is_warned_of_and_the_model_loads(copy_of, key, value, meant):
    with capture_logs() as logs:
        default = spoken(copy_of("single"), {"do_sample": True} | {key: value}).default_sampling
    assert getattr(default, key) == meant and default == DefaultSampling(**{key: meant})
    (warning,) = logs
    assert (warning["log_level"], warning["file"], warning["key"]) == ("warning", "generation_config.json", key)
    assert warning["value"] and warning["done"]


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("temperature", 0, 0.0),  # greedy
        ("top_k", 10**6, 101),  # all of the vocabulary
        ("top_k", 20.0, 20),
        ("top_p", 1e-9, 1e-6),
        ("repetition_penalty", 2, 2.0),
    ],
)
def test_a_value_that_means_the_same_here_is_nothing_to_speak_of(copy_of, key, value, meant):
    with capture_logs() as logs:
        default = spoken(copy_of("single"), {"do_sample": True} | {key: value}).default_sampling
    assert getattr(default, key) == meant and logs == []


@pytest.mark.parametrize("do_sample", [1, "true", [True]])
def test_do_sample_counts_only_when_it_is_true(copy_of, do_sample):
    with capture_logs() as logs:
        assert (
            spoken(copy_of("single"), {"do_sample": do_sample, "temperature": 0.5}).default_sampling.temperature is None
        )
    assert [warning["key"] for warning in logs] == ["do_sample"]


def ends(path, generation, config):
    """(end tokens, files and keys that were warned of) of what both files say; ... leaves a file's key out."""
    content = json.loads((path / "config.json").read_text())
    content.pop("eos_token_id", None)
    (path / "config.json").write_text(json.dumps(content | ({} if config is ... else {"eos_token_id": config})))
    with capture_logs() as logs:
        spec = spoken(path, {} if generation is ... else {"eos_token_id": generation})
    return spec.eos_ids, [(warning["file"], warning["key"]) for warning in logs]


@pytest.mark.parametrize(
    ("generation", "config", "meant"),
    [
        (7, 5, (7, 5)),
        ([7, 5, 7], [5, 6], (7, 5, 6)),
        (..., 5, (5,)),
        (7, ..., (7,)),
        (None, [5, 2.0], (5, 2)),
        (..., None, ()),
    ],
)
def test_an_answer_ends_at_the_end_tokens_of_either_file(copy_of, generation, config, meant):
    assert ends(copy_of("single"), generation, config) == (meant, [])


@pytest.mark.parametrize("value", [-1, 101, [5, 101], [-1, 5], "5", [["5"]], True, {"a": 1}, 2.5, 10**30])
def test_what_is_no_token_is_left_out_of_the_end_tokens(copy_of, value):
    kept = (5,) if isinstance(value, list) and 5 in value else ()
    path = copy_of("single")
    assert ends(path, value, 7) == ((*kept, 7), [("generation_config.json", "eos_token_id")])
    assert ends(path, 7, value) == ((7, *kept), [("config.json", "eos_token_id")])


@pytest.mark.parametrize(("value", "meant"), [(-1, 1), (101, 1), ("<s>", 1), ([], 1), ([3, 4], 3), (None, 1)])
def test_the_first_token_is_one_of_the_vocabulary(copy_of, value, meant):
    assert spoken(copy_of("single"), {"bos_token_id": value}).bos_id == meant, "config.json says 1"


def test_a_list_without_end_is_no_list_of_end_tokens(copy_of):
    with pytest.raises(RefusalError, match="eos_token_id has 1025 entries"):
        spoken(copy_of("single"), {"eos_token_id": [5] * 1025})
