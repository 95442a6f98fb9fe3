"""A snapshot that huggingface_hub left on this machine serves a Hub id: whole, read-only, and as the Hub would have."""

import json
import os
import shutil
from contextlib import closing
from pathlib import Path

import attrs
import huggingface_hub
import pytest
import structlog
from huggingface_hub.utils import _shared_blobs

from hydra.cli.pull import pull_model
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.model.source import Directory, HubCommit, Peers, directory_of
from hydra.protocol.refusal import RefusalError
from hydra.protocol.settings.model import ModelSettings
from hydra.settings import Settings
from hydra.store.cache.cache_room import CacheRoom
from hydra.store.cache.range_cache import RangeCache
from hydra.store.cache.retry_policy import RetryPolicy
from hydra.store.hub.hf_cache import HfCache
from hydra.store.hub.hub import HubClient
from hydra.store.hub.hub_lending import lend_model
from hydra.store.hub.hub_library import HubLibrary
from hydra.store.lending.file_lender import FileLender
from hydra.store.models.library import LocalLibrary
from hydra.store.models.model_ref import HubAccess
from hydra.store.supply import StoreSupply, hub_opener
from tests.fake_hub import Fault, fake_hub
from tests.unit.store.test_supply import order_of

PATIENCE = RetryPolicy(sleep=lambda delay_s: None, tries=3)
SHARD = "model-00002-of-00003.safetensors"
WORDS = {"tokenizer.json": b'{"model": {}}', "tokenizer_config.json": b"{}"}


@pytest.fixture
def hub():
    with fake_hub() as found:
        yield found


@pytest.fixture
def root(tmp_path) -> Path:
    """HF_HUB_CACHE."""
    return tmp_path / "hf"


@pytest.fixture
def fill(hub, root):
    """`fill(...)`: what huggingface_hub itself leaves in its cache; returns the snapshot's directory."""

    def make(repo="org/m", **options) -> Path:
        made = huggingface_hub.snapshot_download(repo, endpoint=hub.url, cache_dir=root, token=False, **options)
        hub.requests.clear()
        hub.bodies.clear()
        return Path(made)

    return make


@pytest.fixture
def library(hub, tmp_path, root):
    """`library(offline=True)`: over our own cache and the Hugging Face cache, without waits."""

    def make(cache="cache", **access) -> HubLibrary:
        access = HubAccess(**({"endpoint": hub.url, "hf_cache": root} | access))
        return HubLibrary(HubClient(access, tmp_path / cache, PATIENCE))

    return make


@pytest.fixture(autouse=True)
def nothing_is_written_there(root):
    """Whatever a test does between filling and reading: the cache is as huggingface_hub and the test left it."""
    yield
    assert not list(root.rglob(".hydra*")) and not list(root.rglob("ranges"))


def refused(call, *args):
    with pytest.raises(RefusalError) as caught:
        call(*args)
    return caught.value.refusal


def state_of(root) -> dict[str, tuple[int, int, int]]:
    stats = {str(path): path.lstat() for path in root.rglob("*")}
    return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def share_blobs(root: Path) -> None:
    """As a download over Xet leaves it: the blob is a link into a store that all repositories share."""
    for number, blob in enumerate(sorted(root.glob("models--*/blobs/*"))):
        size = blob.stat().st_size
        assert _shared_blobs.publish_blob_to_shared_store(
            blob_path=str(blob), xet_hash=f"{number:064x}", cache_dir=root, expected_size=size
        )
        assert blob.is_symlink()


@pytest.mark.parametrize("name", ["sharded", "sharded_tied", "biased", "single"])
@pytest.mark.parametrize("shared", [False, True], ids=["own blobs", "shared blobs"])
def test_a_whole_snapshot_serves_and_nothing_is_fetched(hub, library, saved, fill, root, name, shared):
    commit = hub.add("org/m", saved / name)
    hub.repos["org/m"] |= WORDS
    commit = hub.commit("org/m")
    without = library("other", hf_cache=None).describe("org/m")
    snapshot = fill()
    if shared:
        share_blobs(root)
    before = state_of(root)
    described = library().describe("org/m")
    assert described == attrs.evolve(
        without, folder=described.folder, sources=(Directory(str(snapshot)), HubCommit("org/m", commit))
    ), "the fingerprint too"
    assert {path.name for path in Path(described.folder).iterdir()} >= {"config.json", *WORDS}
    assert not hub.sent and all(path.startswith("/api/") for _, path, _ in hub.requests)
    assert state_of(root) == before


@pytest.mark.parametrize("shared", [False, True], ids=["own blobs", "shared blobs"])
def test_a_snapshot_given_as_a_directory_has_the_fingerprint_of_the_hub(hub, library, saved, fill, root, shared):
    hub.add("org/m", saved / "single")
    snapshot = fill()
    if shared:
        share_blobs(root)
    there = library(hf_cache=None).describe("org/m")
    here = LocalLibrary().describe(str(snapshot))
    assert (here.spec, here.files, here.tensors) == (there.spec, there.files, there.tensors)


@pytest.mark.parametrize("mark", ["none", "directory"])
def test_a_link_beyond_the_blobs_is_refused_as_ever(hub, library, saved, fill, root, mark):
    """The store of a whole cache counts only under huggingface_hub's own mark."""
    hub.add("org/m", saved / "single")
    snapshot = fill()
    share_blobs(root)
    (root / "blobs" / ".huggingface-shared-blobs").unlink()
    if mark == "directory":
        (root / "blobs" / ".huggingface-shared-blobs").mkdir()
    assert "outside the model directory" in refused(LocalLibrary().describe, str(snapshot)).message
    assert library().describe("org/m").sources == (HubCommit("org/m", snapshot.name),)


@pytest.mark.parametrize("away", ["offline", "503", "nobody"])
def test_without_the_hub_a_snapshot_is_enough(hub, library, saved, fill, away):
    commit = hub.add("org/m", saved / "sharded")
    there = library("other", hf_cache=None).describe("org/m")
    snapshot = fill(revision="main")
    if away == "503":
        hub.api_fault = lambda number: Fault(status=503)
    access = {"offline": {"offline": True}, "nobody": {"endpoint": "http://127.0.0.1:9"}}.get(away, {})
    for ref in ("org/m", "org/m@main", f"org/m@{commit}"):
        described = library(**access).describe(ref)
        sources = (Directory(str(snapshot)), *there.sources)
        assert described == attrs.evolve(there, folder=str(snapshot), sources=sources)
    assert not hub.sent and (not hub.requests or away == "503")
    refusal = refused(library(**access).describe, "org/m@v2")
    assert refusal.code == "source_unreachable" and "pull org/m@v2" in refusal.message


def test_a_revision_with_a_slash_and_a_model_that_is_not_there(hub, library, saved, fill, root):
    commit = hub.add("org/m", saved / "single")
    snapshot = fill()
    record = root / "models--org--m" / "refs" / "refs" / "pr" / "7"
    record.parent.mkdir(parents=True)
    record.write_text(commit)
    assert library(offline=True).describe("org/m@refs/pr/7").folder == str(snapshot)
    record.write_text("../../../../etc")
    for ref in ("org/m@refs/pr/7", "org/m@refs", "org/none", f"org/m@{'0' * 40}"):
        assert str(root) in refused(library(offline=True).describe, ref).message


def test_a_snapshot_without_one_shard_lends_its_headers_and_no_weights(hub, library, saved, fill):
    hub.add("org/m", saved / "sharded")
    snapshot = fill(ignore_patterns=[SHARD])
    with structlog.testing.capture_logs() as logs:
        described = library().describe("org/m")
    assert described.sources == (HubCommit("org/m", snapshot.name),)
    assert {path.rsplit("/", 1)[1] for path, _, _ in hub.sent} == {SHARD}, "the other headers are here"
    (line,) = [line for line in logs if "Hugging Face cache" in line["event"]]
    assert SHARD in line["reason"]
    refusal = refused(library("other", offline=True).describe, "org/m")
    assert refusal.code == "source_unreachable" and SHARD in refusal.message
    assert f"hf download org/m --revision {snapshot.name}" in refusal.message


def test_an_interrupted_download_is_no_file(hub, library, saved, fill, root):
    """huggingface_hub keeps what came of it beside the blobs and makes the link at the end."""
    hub.add("org/m", saved / "single")
    snapshot = fill()
    blob = (snapshot / "model.safetensors").resolve()
    blob.rename(blob.with_name(f"{blob.name}.0123abcd.incomplete"))
    assert library().describe("org/m").sources == (HubCommit("org/m", snapshot.name),)
    assert refused(library("other", offline=True).describe, "org/m").code == "source_unreachable"
    blob.write_bytes(b"")
    assert library().describe("org/m").sources == (HubCommit("org/m", snapshot.name),)
    assert "model.safetensors" in refused(library("other", offline=True).describe, "org/m").message


def test_small_files_that_are_missing_come_from_the_hub_and_the_weights_are_used(hub, library, saved, fill):
    hub.add("org/m", saved / "single")
    hub.repos["org/m"] |= WORDS | {"additional_chat_templates/tool.jinja": b"{{ messages }}"}
    snapshot = fill(ignore_patterns=["tokenizer.json"])
    described = library().describe("org/m")
    folder = Path(described.folder)
    assert described.sources[0] == Directory(str(snapshot))
    assert (folder / "tokenizer.json").read_bytes() == WORDS["tokenizer.json"]
    assert (folder / "additional_chat_templates" / "tool.jinja").read_bytes() == b"{{ messages }}"
    assert {path.rsplit("/", 1)[1] for _, path, _ in hub.requests if "/resolve/" in path} == {"tokenizer.json"}


def test_what_somebody_changed_in_the_cache_is_not_the_model_at_the_hub(hub, library, saved, fill):
    hub.add("org/m", saved / "single")
    there = library("other", hf_cache=None).describe("org/m")
    snapshot = fill()
    config = (snapshot / "config.json").resolve()
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 0.5}))
    assert library().describe("org/m").spec == there.spec
    assert library().describe("org/m").sources == there.sources


def test_copies_in_place_of_links_serve_offline(hub, library, saved, fill, monkeypatch):
    """On a file system without links: nothing then says which content at the Hub a large file is."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_SYMLINKS", True)
    hub.add("org/m", saved / "single")
    snapshot = fill()
    assert not (snapshot / "model.safetensors").is_symlink()
    assert library("other", offline=True).describe("org/m").sources[0] == Directory(str(snapshot))
    assert library().describe("org/m").sources == (HubCommit("org/m", snapshot.name),)


@pytest.mark.parametrize("later", ["ours", "theirs"])
def test_without_the_hub_a_branch_is_the_commit_that_was_written_down_last(
    hub, library, copy_of, fill, root, tmp_path, later
):
    directory = copy_of("single")

    def publish(epsilon):
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"rms_norm_eps": epsilon}))
        return hub.add("org/m", directory)

    publish(0.25)
    snapshot = fill()
    theirs = library(offline=True).describe("org/m")
    publish(0.5)
    ours = library(hf_cache=None).describe("org/m")
    assert ours.spec != theirs.spec
    expected, record = {
        "ours": (ours, tmp_path / "cache/hub/org--m/revisions/main"),
        "theirs": (theirs, root / "models--org--m/refs/main"),
    }[later]
    stat = record.stat()
    os.utime(record, (stat.st_atime, stat.st_mtime + 60))
    assert library(offline=True).describe("org/m") == expected
    assert library(offline=True).describe(f"org/m@{snapshot.name}") == theirs, "a commit is what it is"
    assert library().describe("org/m").spec == ours.spec, "and the Hub knows best"


def test_where_the_last_commit_is_not_here_the_one_before_serves(hub, library, copy_of, fill, root):
    directory = copy_of("single")
    hub.add("org/m", directory)
    ours = library(hf_cache=None).describe("org/m")
    (directory / "generation_config.json").write_text('{"eos_token_id": 7}')
    hub.add("org/m", directory)
    snapshot = fill(ignore_patterns=["*.safetensors"])
    os.utime(root / "models--org--m/refs/main", (2**31, 2**31))
    assert library(offline=True).describe("org/m") == ours
    shutil.rmtree(snapshot)
    assert library(offline=True).describe("org/m") == ours


def test_a_wrong_token_is_refused_though_the_weights_are_here(hub, library, saved, fill):
    hub.add("org/m", saved / "single")
    fill()
    hub.token = "right"
    assert refused(library(token="wrong").describe, "org/m").code == "access_denied"
    assert library(token="right").describe("org/m").sources[0].path.startswith("/")


# ---------------------------------------------------------------- workers, lending, pull_model


def supply_of(hub, tmp_path, root, name="w0", **access) -> StoreSupply:
    access = HubAccess(**({"endpoint": hub.url} | access))
    return StoreSupply(RangeCache(CacheRoom(root=tmp_path / name), PATIENCE), hub_opener(access), HfCache(root))


def ensured(supply, order) -> str:
    with closing(supply.cache):
        return directory_of(supply.ensure(order, lambda done, total: None, lambda: False).sources)


def test_workers_read_the_snapshot_wherever_their_own_cache_is(hub, library, saved, fill, tmp_path, root):
    hub.add("org/m", saved / "sharded")
    snapshot = fill()
    described = library().describe("org/m")
    order = order_of(library(), described, 0, 2)
    assert ensured(supply_of(hub, tmp_path, None, offline=True), order) == str(snapshot), "the same machine"
    elsewhere = tmp_path / "another machine"
    shutil.move(root, elsewhere)
    there = elsewhere / snapshot.relative_to(root)
    assert ensured(supply_of(hub, tmp_path, elsewhere, offline=True), order) == str(there)
    assert not hub.sent and not (tmp_path / "w0").exists(), "nothing was fetched, and nothing copied"
    lane = attrs.evolve(order, sources=(Peers((Endpoint("tcp://10.0.0.1:1"),)), *order.sources))
    openers = {**hub_opener(HubAccess()), Peers: lambda name, order: pytest.fail("nobody needs to be asked")}
    supply = StoreSupply(RangeCache(CacheRoom(root=tmp_path / "w1")), openers, HfCache(elsewhere))
    assert ensured(supply, lane) == str(there)


def test_a_worker_whose_cache_holds_only_some_goes_to_the_hub(hub, library, saved, fill, tmp_path, root):
    hub.add("org/m", saved / "sharded")
    fill(ignore_patterns=[SHARD])
    order = order_of(library(), library(hf_cache=None).describe("org/m"), 0, 5)
    folder = Path(ensured(supply_of(hub, tmp_path, root), order))
    assert folder.is_relative_to(tmp_path / "w0")
    with pytest.raises(RefusalError) as caught:
        ensured(supply_of(hub, tmp_path, root, "w1", offline=True), order)
    assert caught.value.refusal.code == "source_unreachable"


def test_the_coordinator_lends_from_the_snapshot(hub, library, saved, fill, tmp_path):
    """Small files from our folder, weights from the snapshot; the Hub is not asked, and nothing enters our cache."""
    hub.add("org/m", saved / "sharded")
    fill()
    described = library().describe("org/m")
    keeper, room = FileLender(), CacheRoom(root=tmp_path / "ranges", max_bytes=1)
    lend_model(keeper, described, HubAccess(endpoint="http://127.0.0.1:9"), room)
    for tensor in described.tensors:
        true = (saved / "sharded" / tensor.file).read_bytes()[tensor.offset :][: tensor.length]
        assert keeper.read(described.spec.fingerprint, tensor.file, tensor.offset, tensor.length).data == true
    assert keeper.read(described.spec.fingerprint, "config.json", 0, 1).data == b"{"
    assert not hub.sent and not room.root.exists()
    keeper.close()


def test_pull_has_nothing_to_fetch(hub, saved, fill, root, tmp_path, monkeypatch):
    hub.add("org/m", saved / "sharded")
    snapshot = fill()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(root))
    shown: list[str] = []
    told = pull_model("org/m", Settings(model=ModelSettings(cache_dir=str(tmp_path / "cache"))), shown.append)
    assert (told["model"], told["weights"], told["bytes_fetched"]) == (f"org/m@{snapshot.name}", str(snapshot), 0)
    assert told["bytes_total"] == sum(tensor.length for tensor in LocalLibrary().describe(str(snapshot)).tensors)
    assert not hub.sent and any(str(snapshot) in line for line in shown)
    assert not (tmp_path / "cache" / "ranges").exists()
