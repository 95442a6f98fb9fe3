"""What transformers saved is described truly, and any way of cutting it into slices loses and doubles nothing."""

import json
import math
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hydra.protocol.model.part_size import PartSize, total_size
from hydra.protocol.refusal import RefusalError
from hydra.store.models.library import LocalLibrary

LIBRARY = LocalLibrary()
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
MODELS = ["sharded", "sharded_tied", "biased", "single"]
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def bytes_of(described, tensor) -> bytes:
    with (Path(described.model_path) / tensor.file).open("rb") as file:
        file.seek(tensor.offset)
        return file.read(tensor.length)


def test_the_shards_are_as_the_tests_mean_them(saved):
    assert len(list((saved / "sharded").glob("*.safetensors"))) == 3
    assert len(list((saved / "single").glob("*.safetensors"))) == 1


@pytest.mark.parametrize("name", MODELS)
def test_ranges_hold_the_very_bytes_of_the_tensors(saved, name):
    described = LIBRARY.describe(str(saved / name))
    loaded = {}
    for path in (saved / name).glob("*.safetensors"):
        loaded.update(load_file(path))
    assert {tensor.name for tensor in described.tensors} == set(loaded)
    for tensor in described.tensors:
        true = loaded[tensor.name]
        assert (tensor.shape, TORCH_DTYPES[tensor.encoding.dtype]) == (tuple(true.shape), true.dtype)
        assert bytes_of(described, tensor) == true.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("name", MODELS)
def test_the_spec_counts_what_is_there(saved, name):
    described = LIBRARY.describe(str(saved / name))
    spec = described.spec
    total = sum(math.prod(tensor.shape) for tensor in described.tensors)
    whole = total_size((*spec.layer_sizes, spec.embedding_size, spec.norm_size, spec.head_size))
    assert whole == PartSize(total, sum(tensor.length for tensor in described.tensors))
    assert whole.stored_bytes == total * (2 if name == "biased" else 4) == whole.memory_bytes(spec.stored_dtype)
    (layer,) = spec.decoder.kinds
    heads = layer.attention
    assert (spec.n_layers, spec.hidden, heads.n_heads, heads.n_kv_heads, spec.vocab) == (5, 32, 4, 2, 101)
    assert heads.head_dim == layer.cache.head_dim == (10 if name == "biased" else 8)
    (rope,) = spec.decoder.ropes
    assert rope.theta == (50_000.0 if name == "biased" else 10_000.0)
    assert spec.stored_dtype == ("bfloat16" if name == "biased" else "float32")
    biases = (heads.qkv_bias, heads.out_bias, layer.feed_forward.bias)
    assert biases == (name == "biased",) * 3
    assert spec.tied == (name == "sharded_tied")
    assert (spec.head_size == PartSize(0, 0)) == spec.tied
    assert (spec.bos_id, spec.eos_ids) == (1, (2,))
    assert described.default_id == name


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cuts", [(0, 5), (0, 1, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5)])
def test_slices_tile_the_model(saved, name, cuts):
    described = LIBRARY.describe(str(saved / name))
    slices = [LIBRARY.slice_ranges(described, a, b) for a, b in pairwise(cuts)]
    counts = Counter(tensor.name for part in slices for tensor in part)
    twice = {EMBEDDING} if described.spec.tied and len(slices) > 1 else set()
    assert set(counts) == {tensor.name for tensor in described.tensors}
    assert {name for name, count in counts.items() if count > 1} == twice
    assert EMBEDDING in {tensor.name for tensor in slices[0]}
    assert {NORM, EMBEDDING if described.spec.tied else HEAD} <= {tensor.name for tensor in slices[-1]}
    for part, (a, b) in zip(slices, pairwise(cuts), strict=True):
        size = described.spec.slice_size(a, b)
        assert sum(math.prod(tensor.shape) for tensor in part) == size.numbers
        assert sum(tensor.length for tensor in part) == size.stored_bytes


@pytest.mark.parametrize(("first", "end"), [(-1, 2), (2, 2), (3, 2), (0, 6)])
def test_no_such_slice(saved, first, end):
    with pytest.raises(ValueError, match="no slice"):
        LIBRARY.slice_ranges(LIBRARY.describe(str(saved / "single")), first, end)


def test_the_fingerprint_is_of_the_content_not_of_the_place(saved, copy_of):
    copy = copy_of("single")
    before = LIBRARY.describe(str(saved / "single")).spec.fingerprint
    assert LIBRARY.describe(str(copy)).spec.fingerprint == before
    weights = copy / "model.safetensors"
    last = max(LIBRARY.describe(str(copy)).tensors, key=lambda tensor: tensor.offset)
    raw = bytearray(weights.read_bytes())
    raw[last.offset + last.length // 2] ^= 1  # a fine-tune: same config, same headers, same sizes
    weights.write_bytes(raw)
    assert LIBRARY.describe(str(copy)).spec.fingerprint != before


def test_end_tokens_come_from_the_generation_config_first(copy_of):
    copy = copy_of("single")
    (copy / "generation_config.json").write_text('{"eos_token_id": [5, 6, 5]}')
    assert LIBRARY.describe(str(copy)).spec.eos_ids == (5, 6, 2), "and then those of config.json"
    (copy / "generation_config.json").unlink()
    assert LIBRARY.describe(str(copy)).spec.eos_ids == (2,)


@pytest.mark.parametrize(
    ("rope", "theta"),
    [
        ({}, 10_000.0),
        ({"rope_theta": 500_000}, 500_000.0),
        ({"rope_theta": 7.0, "rope_scaling": None}, 7.0),
        ({"rope_scaling": {"type": "default"}, "rope_theta": 9.0}, 9.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 8.0}, "rope_theta": 9.0}, 8.0),
    ],
)
def test_rope_as_old_and_new_configs_write_it(copy_of, rope, theta):
    copy = copy_of("single")
    config = json.loads((copy / "config.json").read_text())
    del config["rope_parameters"]
    (copy / "config.json").write_text(json.dumps(config | rope))
    (rope,) = LIBRARY.describe(str(copy)).spec.decoder.ropes
    assert (rope.kind, rope.theta) == ("default", theta)


def test_a_hugging_face_cache_keeps_its_files_in_blobs(saved, tmp_path):
    repo = tmp_path / "models--a--b"
    snapshot = repo / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    shutil.copytree(saved / "sharded", repo / "blobs")
    for file in (repo / "blobs").iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert LIBRARY.describe(str(snapshot)).spec == LIBRARY.describe(str(saved / "sharded")).spec


def test_a_link_to_a_model_directory_is_fine_and_names_it(saved, tmp_path):
    (tmp_path / "my-model").symlink_to(saved / "single")
    assert LIBRARY.describe(str(tmp_path / "my-model")).default_id == "my-model"


def test_only_needed_shards_are_opened(copy_of):
    copy = copy_of("sharded")
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.rotary_emb.inv_freq"] = "absent.safetensors"
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    LIBRARY.describe(str(copy))


@pytest.mark.parametrize("path", ["", "/no/such/directory", "bad\0path", "~nobody-of-that-name/x"])
def test_no_directory(path):
    with pytest.raises(RefusalError) as caught:
        LIBRARY.describe(path)
    assert caught.value.refusal.code == "model_not_found"
