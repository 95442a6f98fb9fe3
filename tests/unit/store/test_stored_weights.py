"""Weights that are stored though config.json does not ask for them: used, compared, refused, or passed over aloud."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs

from hydra.protocol.model.source import Directory
from hydra.protocol.refusal import RefusalError
from hydra.store.cache.cache_room import CacheRoom
from hydra.store.cache.range_cache import RangeCache
from hydra.store.hub.hub import HEADER_GUESS_BYTES, HubClient
from hydra.store.hub.hub_library import HubLibrary
from hydra.store.models import weight_files
from hydra.store.models.library import LocalLibrary
from hydra.store.models.model_dir import describe
from hydra.store.models.model_ref import HubAccess
from hydra.store.supply import StoreSupply
from tests.fake_hub import fake_hub
from tests.unit.store.test_supply import order_of

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
INDEX = "model.safetensors.index.json"
SHARDS = tuple(f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3))


def tie(path):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    return path


def change(path, file="model.safetensors", **tensors):
    """Adds or replaces tensors of one file; a name that is None goes."""
    held = load_file(path / file) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in held.items() if tensor is not None}, path / file)


def placed(path):
    return json.loads((path / INDEX).read_text())["weight_map"]


def replaced(path, name, tensor):
    """In whichever file the tensor lies."""
    file = placed(path)[name] if (path / INDEX).exists() else "model.safetensors"
    change(path, file, **{name: tensor})


def stored(path, name):
    return load_file(path / (placed(path)[name] if (path / INDEX).exists() else "model.safetensors"))[name]


def names(described):
    return {tensor.name for tensor in described.tensors}


# ---------------------------------------------------------------- a head beside a tied embedding


@pytest.mark.parametrize("name", ["single", "sharded"])
def test_a_tied_flag_does_not_drop_a_head_of_its_own(copy_of, name):
    path = copy_of(name)
    untied = describe(str(path)).spec
    with capture_logs() as logs:
        described = describe(str(tie(path)))
    assert HEAD in names(described) and not described.spec.tied
    assert described.spec.head_size.numbers == 101 * 32 and described.spec.slice_size(4, 5) == untied.slice_size(4, 5)
    assert [(log["log_level"], log["head"]) for log in logs] == [("warning", HEAD)]


@pytest.mark.parametrize("name", ["single", "sharded"])
def test_a_head_that_is_the_embedding_once_more_is_not_read_twice(copy_of, name):
    path = tie(copy_of(name))
    replaced(path, HEAD, stored(path, EMBEDDING).clone())
    with capture_logs() as logs:
        described = describe(str(path))
    assert described.spec.tied and described.spec.head_size.numbers == 0 and HEAD not in names(described) and logs == []


@pytest.mark.parametrize("chunk_bytes", [1, 1000, 101 * 32 * 4, 1 << 20])
@pytest.mark.parametrize("at", [(0, 0), (50, 7), (100, 31)])
def test_one_number_anywhere_makes_it_another_head(copy_of, monkeypatch, chunk_bytes, at):
    monkeypatch.setattr(weight_files, "COMPARED_BYTES", chunk_bytes)
    path = tie(copy_of("single"))
    head = stored(path, EMBEDDING).clone()
    replaced(path, HEAD, head.clone())
    before = describe(str(path)).spec
    head[at] += 1
    replaced(path, HEAD, head)
    after = describe(str(path)).spec
    assert (before.tied, after.tied) == (True, False) and before.fingerprint != after.fingerprint


@pytest.mark.parametrize("same", [True, False])
def test_a_worker_with_a_copy_of_its_own_does_not_compare_again(copy_of, tmp_path, monkeypatch, same):
    """What was found where the model was described is in the order; a worker reads its own layers."""
    path = tie(copy_of("single"))
    if same:
        replaced(path, HEAD, stored(path, EMBEDDING).clone())
    described = describe(str(path))
    monkeypatch.setattr(weight_files.LocalFiles, "same_bytes", None)
    assert describe(str(path), tied=described.spec.tied) == described and described.spec.tied == same
    supply = StoreSupply(RangeCache(CacheRoom(root=tmp_path / "cache")), {})
    order = order_of(LocalLibrary(), described, 0, 5)
    assert supply.ensure(order, lambda *_: None, lambda: False).sources == (Directory(str(path)),), (
        "its own copy will do"
    )


def test_a_head_of_the_same_numbers_in_another_dtype_is_another_head(copy_of):
    path = tie(copy_of("single"))
    replaced(path, HEAD, stored(path, EMBEDDING).to(torch.bfloat16))
    assert not describe(str(path)).spec.tied


def test_a_head_of_another_shape_is_refused(copy_of):
    path = tie(copy_of("single"))
    replaced(path, HEAD, torch.zeros(104, 32))
    with pytest.raises(RefusalError, match=HEAD):
        describe(str(path))


def test_a_head_that_the_index_does_not_name_counts_as_well(copy_of):
    path = tie(copy_of("sharded"))
    index = json.loads((path / INDEX).read_text())
    file = index["weight_map"].pop(HEAD)
    (path / INDEX).write_text(json.dumps(index))
    assert {tensor.file for tensor in describe(str(path)).tensors if tensor.name == HEAD} == {file}


def test_a_file_with_nothing_but_a_head_that_is_not_used_is_no_file_of_the_model(copy_of):
    path = tie(copy_of("sharded_tied"))
    alone = "head.safetensors"
    save_file({HEAD: stored(path, EMBEDDING)}, path / alone)
    index = json.loads((path / INDEX).read_text())
    plain = describe(str(path))
    index["weight_map"][HEAD] = alone
    (path / INDEX).write_text(json.dumps(index))
    assert describe(str(path)) == plain
    (path / alone).unlink()
    with pytest.raises(RefusalError, match=alone):  # nobody knows what it held
        describe(str(path))


def test_at_the_hub_a_stored_head_is_used_because_only_headers_are_fetched(copy_of, tmp_path):
    path = tie(copy_of("single"))
    replaced(path, HEAD, stored(path, EMBEDDING).clone())
    with fake_hub() as hub:
        hub.add("org/m", path)
        there = HubLibrary(HubClient(HubAccess(endpoint=hub.url), tmp_path / "cache")).describe("org/m")
        assert all(start == 0 and sent <= HEADER_GUESS_BYTES for _, start, sent in hub.sent), "headers only"
    assert not there.spec.tied and HEAD in names(there)
    assert there.spec.fingerprint != describe(str(path)).spec.fingerprint, "a worker must not take one for the other"


# ---------------------------------------------------------------- weights that nobody asks for


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.5.self_attn.q_proj.weight",  # config.json says five layers: it is another model's
        "model.layers.61.shared_head.norm.weight",
        "model.layers.01.mlp.up_proj.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_proj.weight_scale",
        "model.norm.bias",
        "lm_head.bias",
        "lm_head.weight_scale",
        "model.embed_tokens.weight_scale",
    ],
)
def test_a_weight_of_the_decoder_that_nobody_asks_for_is_refused_by_name(copy_of, name):
    path = copy_of("single")
    change(path, **{name: torch.ones(2)})
    with pytest.raises(RefusalError, match=name) as caught:
        describe(str(path))
    assert caught.value.refusal.code == "bad_model"


def test_also_when_it_lies_in_a_shard_and_the_index_is_silent(copy_of):
    path = copy_of("sharded")
    change(path, SHARDS[1], **{"model.layers.0.self_attn.q_proj.bias": torch.ones(32)})
    with pytest.raises(RefusalError, match=r"q_proj\.bias"):
        describe(str(path))


def test_a_tensor_that_lies_in_two_files_is_refused_with_their_names(copy_of):
    path = copy_of("sharded")
    name = "model.norm.weight"
    other = next(file for file in SHARDS if file != placed(path)[name])
    change(path, other, **{name: torch.ones(32)})
    with pytest.raises(RefusalError, match=name) as caught:
        describe(str(path))
    assert other in caught.value.refusal.message and placed(path)[name] in caught.value.refusal.message


def test_what_is_no_part_of_the_decoder_is_passed_over_aloud(copy_of):
    path = copy_of("single")
    plain = names(describe(str(path)))
    extra = {"score.weight": torch.ones(2, 32), "medusa_head.0.weight": torch.ones(2), "model.vision.x": torch.ones(1)}
    change(path, **extra)
    with capture_logs() as logs:
        assert names(describe(str(path))) == plain
    assert [(log["log_level"], log["n"], log["first"]) for log in logs] == [("warning", 3, "medusa_head.0.weight")]


@pytest.mark.parametrize("prefix", ["model", "model.layers.0.self_attn", "model.layers.7"])
def test_frequencies_follow_from_the_config(copy_of, prefix):
    path = copy_of("single")
    change(path, **{f"{prefix}.rotary_emb.inv_freq": torch.full((4,), 9.0)})
    with capture_logs() as logs:
        describe(str(path))
    assert logs == []
