"""A model by its Hub id is described like the same files in a directory, without any of its weights."""

import json
import shutil
from pathlib import Path

import attrs
import pytest

from hydra.protocol.model.source import HubCommit
from hydra.protocol.refusal import RefusalError
from hydra.store.cache.retry_policy import RetryPolicy
from hydra.store.hub.hub import HEADER_GUESS_BYTES, HubClient
from hydra.store.hub.hub_library import HubLibrary
from hydra.store.models.library import LocalLibrary
from hydra.store.models.model_ref import HubAccess
from tests.fake_hub import Fault, tag_of
from tests.unit.store.quantised.checkpoints import write_checkpoint


def refused(library, ref):
    with pytest.raises(RefusalError) as caught:
        library.describe(ref)
    return caught.value.refusal


def header_bytes(path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


@pytest.mark.parametrize("name", ["sharded", "sharded_tied", "biased", "single"])
def test_a_hub_model_is_described_like_its_directory(hub, library, saved, name):
    commit = hub.add("org/m", saved / name)
    here, there = LocalLibrary().describe(str(saved / name)), library().describe("org/m")
    assert there.tensors == here.tensors
    assert attrs.evolve(there.spec, fingerprint="") == attrs.evolve(here.spec, fingerprint="")
    assert (there.model_path, there.default_id) == (f"org/m@{commit}", "org/m")
    assert there.sources == (HubCommit("org/m", commit),)
    assert [(item.file, item.size_bytes) for item in there.files] == [(i.file, i.size_bytes) for i in here.files]
    assert all(item.tag == tag_of((saved / name / item.file).read_bytes(), item.file) for item in there.files)
    assert len(hub.sent) == len(here.files)
    assert all(start == 0 and sent <= HEADER_GUESS_BYTES for _, start, sent in hub.sent), "headers only"


@pytest.mark.parametrize("name", ["packed, ordered", "gptq", "fp8", "nf4"])
def test_a_quantised_hub_model_is_described_like_its_directory(hub, library, tmp_path, name):
    directory = write_checkpoint(tmp_path / "model", name)
    hub.add("org/m", directory)
    here, there = LocalLibrary().describe(str(directory)), library().describe("org/m")
    assert there.tensors == here.tensors and {source.place.side for source in there.tensors} >= {"values", "scale"}
    assert attrs.evolve(there.spec, fingerprint="") == attrs.evolve(here.spec, fingerprint="")
    assert all(start == 0 and sent <= HEADER_GUESS_BYTES for _, start, sent in hub.sent), "headers only"


def test_small_files_lie_in_the_folder(hub, library, saved):
    hub.add("org/m", saved / "single")
    hub.repos["org/m"] |= {"tokenizer.json": b"{}", "README.md": b"x", "extra.py": b"raise SystemExit"}
    folder = library().describe("org/m").folder
    found = {path.name for path in Path(folder).iterdir() if path.is_file()}
    assert found == {"config.json", "generation_config.json", "tokenizer.json"}


def test_the_second_time_only_the_listing_is_asked_for(hub, library, saved):
    commit = hub.add("org/m", saved / "sharded")
    first = library().describe("org/m")
    hub.requests.clear()
    assert library().describe(f"org/m@{commit}") == first and not hub.requests, "and of a commit nothing at all"
    assert library().describe("org/m") == first
    assert [path.split("/")[4:6] for _, path, _ in hub.requests] == [["m", "revision"], ["m", "tree"]]


def test_offline_works_from_the_cache_or_says_what_is_missing(hub, library, saved, tmp_path):
    commit = hub.add("org/m", saved / "sharded")
    first = library().describe("org/m")
    hub.requests.clear()
    for ref in ("org/m", "org/m@main", f"org/m@{commit}"):
        assert library(offline=True).describe(ref) == first
    refusal = refused(library(offline=True), "org/other")
    assert refusal.code == "source_unreachable" and "org/other@main" in refusal.message
    assert "pull org/other@main" in refusal.message
    shutil.rmtree(tmp_path / "cache" / "hub" / "org--m" / "commits" / commit / ".hydra" / "headers")
    assert "header of model-0000" in refused(library(offline=True), "org/m").message
    assert not hub.requests


def test_a_hub_that_is_away_is_answered_for_by_the_cache(hub, library, saved):
    hub.add("org/m", saved / "single")
    first = library().describe("org/m")
    hub.api_fault = lambda number: Fault(status=503)
    assert library().describe("org/m") == first
    assert refused(library(), "org/other").code == "source_unreachable"
    assert library(endpoint="http://127.0.0.1:9").describe("org/m") == first


@pytest.mark.parametrize(
    "page", [{"Content-Type": "text/html"}, {"Content-Type": "application/json"}, {}], ids=["html", "json", "nothing"]
)
def test_a_login_page_in_place_of_the_hub_is_a_hub_that_is_away(hub, library, saved, page):
    hub.add("org/m", saved / "single")
    first = library().describe("org/m")
    hub.portal = page
    assert library().describe("org/m") == first
    refusal = refused(library(), "org/other")
    assert refusal.code == "source_unreachable" and "login page" in refusal.message


@pytest.mark.parametrize("answer", [[], {}, {"error": "x"}, "text", None, 7])
def test_json_that_is_not_the_hubs_is_a_hub_that_is_away(hub, library, saved, answer, monkeypatch):
    hub.add("org/m", saved / "single")
    first = library().describe("org/m")
    monkeypatch.setattr("tests.fake_hub.PORTAL", json.dumps(answer).encode())
    hub.portal = {"Content-Type": "application/json"}
    assert library().describe("org/m") == first
    assert refused(library(), "org/other").code == "source_unreachable"


def test_a_busy_hub_is_asked_again(hub, library, saved):
    hub.add("org/m", saved / "single")
    hub.api_fault = lambda number: Fault(status=429, headers={"Retry-After": "1"}) if number % 2 else None
    hub.fault = lambda asked: Fault(status=500) if asked.number == 1 else None
    assert library().describe("org/m").spec.n_layers == 5


def test_where_range_is_ignored_the_rest_of_the_file_is_declined(hub, library, saved):
    hub.add("org/m", saved / "single")
    hub.ranges = False
    assert library().describe("org/m").spec.n_layers == 5


def test_a_header_longer_than_the_guess(hub, library, saved, monkeypatch):
    monkeypatch.setattr("hydra.store.hub.hub.HEADER_GUESS_BYTES", 100)
    hub.add("org/m", saved / "single")
    assert library().describe("org/m").tensors == LocalLibrary().describe(str(saved / "single")).tensors
    assert sum(sent for _, _, sent in hub.sent) == header_bytes(saved / "single" / "model.safetensors")


def test_new_weights_under_the_same_branch_are_another_model(hub, library, copy_of):
    directory = copy_of("single")
    hub.add("org/m", directory)
    first = library().describe("org/m")
    raw = bytearray((directory / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (directory / "model.safetensors").write_bytes(raw)
    hub.add("org/m", directory)
    second = library().describe("org/m")
    assert second.spec.fingerprint != first.spec.fingerprint and second.sources != first.sources
    assert library(offline=True).describe("org/m") == second


def test_equal_content_has_one_fingerprint_wherever_it_is(hub, library, copy_of, saved, tmp_path):
    """Another commit, another repository, and what huggingface_hub itself left in its cache."""
    hub.add("org/m", saved / "single")
    first = library().describe("org/m")
    hub.repos["org/m"]["README.md"] = b"changed"
    hub.add("mirror/m", saved / "single")
    assert library().describe("org/m").model_path != first.model_path
    assert library().describe("org/m").spec.fingerprint == first.spec.fingerprint
    assert library().describe("mirror/m").spec.fingerprint == first.spec.fingerprint
    repo = tmp_path / "models--org--m"
    (repo / "blobs").mkdir(parents=True)
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for path in (saved / "single").iterdir():
        blob = repo / "blobs" / tag_of(path.read_bytes(), path.name)
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(blob)
    assert LocalLibrary().describe(str(snapshot)).spec.fingerprint == first.spec.fingerprint


@pytest.mark.parametrize(
    ("ref", "code", "words"),
    [
        ("org/none", "model_not_found", "no model org/none@main"),
        ("org/m@nope", "model_not_found", "no revision 'nope'"),
        ("nowhere", "model_not_found", "no model directory"),
        ("org/m.git", "model_not_found", "cannot be the name"),
        ("org/m-", "model_not_found", "cannot be the name"),
    ],
)
def test_what_there_is_not(hub, library, saved, ref, code, words):
    hub.add("org/m", saved / "single")
    refusal = refused(library(), ref)
    assert refusal.code == code and words in refusal.message


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_says_how_to_get_access(hub, library, saved, status):
    hub.add("org/m", saved / "single")
    hub.token, hub.denied_status = "right", status
    refusal = refused(library(), "org/m")
    assert refusal.code == "access_denied" and f"{hub.url}/org/m" in refusal.message and "hf_token" in refusal.message
    assert refused(library(token="wrong"), "org/m").code == "access_denied"
    assert library(token="right").describe("org/m").spec.n_layers == 5


def test_pickled_weights_are_refused_with_the_remedy(hub, library, saved):
    hub.add("org/m", saved / "single")
    hub.repos["org/m"]["pytorch_model.bin"] = hub.repos["org/m"].pop("model.safetensors")
    refusal = refused(library(), "org/m")
    assert refusal.code == "unsupported" and "safetensors" in refusal.message
    assert not any("pytorch_model" in path for _, path, _ in hub.requests)


def test_a_shard_that_the_repository_lacks(hub, library, saved):
    hub.add("org/m", saved / "sharded")
    del hub.repos["org/m"]["model-00002-of-00003.safetensors"]
    assert "00002-of-00003.safetensors, which is missing" in refused(library(), "org/m").message


def test_a_lying_header_is_refused_by_name(hub, library, saved):
    hub.add("org/m", saved / "single")
    content = hub.repos["org/m"]["model.safetensors"]
    hub.repos["org/m"]["model.safetensors"] = (1 << 40).to_bytes(8, "little") + content[8:]
    assert "announces a header" in refused(library(), "org/m").message


def test_a_small_file_that_is_not_small_is_not_fetched(hub, library, saved, monkeypatch):
    monkeypatch.setattr("hydra.store.hub.hub.SMALL_MAX_BYTES", 1000)
    hub.add("org/m", saved / "single")
    hub.repos["org/m"]["tokenizer.json"] = json.dumps({"x": "y" * 2000}).encode()
    assert "tokenizer.json has" in refused(library(), "org/m").message
    assert not any("tokenizer.json" in path for _, path, _ in hub.requests)


def test_a_cache_that_cannot_be_written_is_a_refusal(hub, saved, tmp_path):
    (tmp_path / "file").write_text("")
    hub.add("org/m", saved / "single")
    library = HubLibrary(HubClient(HubAccess(endpoint=hub.url), tmp_path / "file", RetryPolicy(tries=1)))
    assert refused(library, "org/m").code == "source_unreachable"
