"""What an order's sources mean on the worker's machine: only the model that was described will do."""

import os
import shutil
from contextlib import closing
from pathlib import Path

import attrs
import pytest

from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Epoch, RouteId
from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.model.source import Directory, Peers, directory_of
from hydra.protocol.refusal import RefusalError
from hydra.store.cache.cache_room import CacheRoom
from hydra.store.cache.range_cache import RangeCache
from hydra.store.cache.retry_policy import RetryPolicy
from hydra.store.hub.hub import HubClient
from hydra.store.hub.hub_library import HubLibrary
from hydra.store.models.library import LocalLibrary
from hydra.store.models.model_ref import HubAccess
from hydra.store.supply import StoreSupply, hub_opener
from tests.fake_hub import fake_hub


def order_of(library, described, first, end, **changes) -> LoadSlice:
    order = LoadSlice(
        route=RouteId(1),
        epoch=Epoch(1, 1),
        spec=described.spec,
        dtype="float32",
        first_layer=first,
        end_layer=end,
        tensors=library.slice_ranges(described, first, end),
        sources=described.sources,
        files=described.files,
        block_size=16,
        kv_memory_bytes=0,
    )
    return attrs.evolve(order, **changes)


@pytest.fixture
def hub():
    with fake_hub() as found:
        yield found


@pytest.fixture
def supply_of(hub, tmp_path):
    """`supply_of("w0", token=...)`: a worker's supply with a cache of its own."""

    def make(name="w0", **access):
        access = HubAccess(**({"endpoint": hub.url} | access))
        cache = RangeCache(CacheRoom(root=tmp_path / name), policy=RetryPolicy(tries=2, sleep=lambda delay_s: None))
        return StoreSupply(cache, hub_opener(access))

    return make


def ensured(supply, order, cancelled=lambda: False):
    told = []
    at_hand = supply.ensure(order, lambda done, total: told.append((done, total)), cancelled)
    assert attrs.evolve(at_hand, sources=order.sources) == order
    folder = directory_of(at_hand.sources)
    return Path(folder), told


def refused(supply, order):
    with pytest.raises(RefusalError) as caught:
        supply.ensure(order, lambda done, total: None, lambda: False)
    return caught.value.refusal


def test_an_equal_directory_is_taken_as_it_is(saved, supply_of, tmp_path):
    library = LocalLibrary()
    order = order_of(library, library.describe(str(saved / "single")), 0, 5)
    assert ensured(supply_of(), order) == (saved / "single", [])
    assert not (tmp_path / "w0").exists()


def test_another_model_at_the_same_path_is_not_used(copy_of, saved, supply_of):
    library, place = LocalLibrary(), copy_of("single")
    order = order_of(library, library.describe(str(place)), 0, 5)
    shutil.rmtree(place)
    assert "there is no" in refused(supply_of(), order).message
    shutil.copytree(saved / "sharded", place)
    refusal = refused(supply_of(), order)
    assert refusal.code == "model_not_found" and "is another one than the coordinator's" in refusal.message
    (place / "config.json").unlink()
    assert "config.json" in refused(supply_of(), order).message


def test_a_directory_that_is_not_here_leaves_the_next_source(hub, saved, supply_of, tmp_path):
    hub.add("org/m", saved / "single")
    library = HubLibrary(HubClient(HubAccess(endpoint=hub.url), tmp_path / "cache"))
    described = library.describe("org/m")
    places = Directory("/no/such/place"), Directory(str(saved / "sharded"))
    order = order_of(
        library,
        described,
        0,
        2,
        sources=(*places, *described.sources),
    )
    folder, told = ensured(supply_of(), order)
    assert folder.is_relative_to(tmp_path / "w0") and told[-1][0] == told[-1][1] > 0


@pytest.mark.parametrize("name", ["sharded", "sharded_tied", "single"])
def test_workers_fetch_their_own_layers_and_nothing_else(hub, saved, supply_of, tmp_path, name):
    hub.add("org/m", saved / name)
    library = HubLibrary(HubClient(HubAccess(endpoint=hub.url), tmp_path / "cache"))
    described = library.describe("org/m")
    headers = len(hub.sent)
    for worker, (first, end) in enumerate([(0, 1), (1, 3), (3, 4), (4, 5)]):
        order, before = order_of(library, described, first, end), len(hub.sent)
        folder, told = ensured(supply_of(f"w{worker}"), order)
        wanted = sum(tensor.length for tensor in order.tensors)
        assert sum(sent for _, _, sent in hub.sent[before:]) == wanted == told[-1][1]
        for tensor in order.tensors:
            true = (saved / name / tensor.file).read_bytes()[tensor.offset :][: tensor.length]
            assert (folder / tensor.file).read_bytes()[tensor.offset :][: tensor.length] == true
    shared = {"model.embed_tokens.weight"} if described.spec.tied else set()
    for tensor in described.tensors:
        times = [
            (start, sent)
            for path, start, sent in hub.sent[headers:]
            if path.endswith(tensor.file) and start < tensor.offset + tensor.length and tensor.offset < start + sent
        ]
        assert len(times) == (2 if tensor.name in shared else 1)


def test_a_new_plan_fetches_only_the_difference(hub, saved, supply_of, tmp_path):
    hub.add("org/m", saved / "single")
    library = HubLibrary(HubClient(HubAccess(endpoint=hub.url), tmp_path / "cache"))
    described = library.describe("org/m")
    supply = supply_of()
    ensured(supply, order_of(library, described, 0, 2))
    before = len(hub.sent)
    ensured(supply, order_of(library, described, 0, 3))
    third = sum(t.length for t in described.tensors if t.name.startswith("model.layers.2."))
    assert sum(sent for _, _, sent in hub.sent[before:]) == third


def test_offline_the_cache_is_enough_or_what_is_missing_is_named(hub, saved, supply_of, tmp_path):
    hub.add("org/m", saved / "single")
    library = HubLibrary(HubClient(HubAccess(endpoint=hub.url), tmp_path / "cache"))
    described = library.describe("org/m")
    part, whole = order_of(library, described, 0, 2), order_of(library, described, 0, 5)
    folder, _ = ensured(supply_of(), part)
    requests = len(hub.requests)
    assert ensured(supply_of(offline=True), part)[0] == folder
    refusal = refused(supply_of(offline=True), whole)
    missing = sum(t.length for t in whole.tensors) - sum(t.length for t in part.tensors)
    assert refusal.code == "source_unreachable" and "offline" in refusal.message
    assert f"{missing} bytes of model.safetensors" in refusal.message and len(hub.requests) == requests


def test_a_gated_model_is_the_workers_refusal_too(hub, saved, supply_of, tmp_path):
    hub.add("org/m", saved / "single")
    hub.token = "right"
    library = HubLibrary(HubClient(HubAccess(endpoint=hub.url, token="right"), tmp_path / "cache"))
    order = order_of(library, library.describe("org/m"), 0, 5)
    assert refused(supply_of(), order).code == "access_denied"
    assert ensured(supply_of(token="right"), order)


def test_what_changed_at_the_hub_is_never_mixed_in(hub, saved, supply_of, tmp_path):
    hub.add("org/m", saved / "single")
    library = HubLibrary(HubClient(HubAccess(endpoint=hub.url), tmp_path / "cache"))
    order = order_of(library, library.describe("org/m"), 0, 5)
    hub.tags["model.safetensors"] = "0" * 64
    refusal = refused(supply_of(), order)
    assert refusal.code == "source_unreachable" and "has changed there" in refusal.message


def test_a_supply_that_is_called_off_says_so(hub, saved, supply_of, tmp_path):
    hub.add("org/m", saved / "single")
    library = HubLibrary(HubClient(HubAccess(endpoint=hub.url), tmp_path / "cache"))
    order = order_of(library, library.describe("org/m"), 0, 5)
    supply = supply_of()
    with pytest.raises(RefusalError) as caught, closing(supply.cache):
        supply.ensure(order, lambda done, total: None, lambda: True)
    assert caught.value.refusal.code == "cancelled"


@pytest.mark.parametrize("source", [Directory("relative/path"), Peers((Endpoint("tcp://w0:1"),))])
def test_an_unknown_kind_of_source_is_named(saved, supply_of, source):
    library = LocalLibrary()
    order = order_of(library, library.describe(str(saved / "single")), 0, 5, sources=(source,))
    refusal = refused(supply_of(), order)
    assert refusal.code == "model_not_found" and str(source) in refusal.message


def rewrite(path):
    """In place, with the time of writing set back, where no probe looks."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the clock's grain
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change", [rewrite, lambda path: path.write_bytes(b"x"), lambda path: path.chmod(0o400), Path.unlink]
)
def test_a_directory_that_changes_while_it_is_read_is_refused(supply_of, copy_of, change):
    library, directory = LocalLibrary(), copy_of("sharded")
    order = order_of(library, library.describe(str(directory)), 0, 5)
    supply = supply_of()
    at_hand = supply.ensure(order, lambda done, total: None, lambda: False)
    path = directory / "model-00002-of-00003.safetensors"
    content = path.read_bytes()
    change(path)
    if not path.exists() or path.read_bytes() == content:
        supply.confirm(at_hand)
        return
    with pytest.raises(RefusalError) as caught:
        supply.confirm(at_hand)
    assert caught.value.refusal.code == "bad_model" and "00002-of" in caught.value.refusal.message


def test_a_cache_that_grows_while_it_is_read_is_confirmed(hub, saved, supply_of, tmp_path):
    hub.add("org/m", saved / "single")
    library = HubLibrary(HubClient(HubAccess(endpoint=hub.url), tmp_path / "cache"))
    described = library.describe("org/m")
    supply, other = supply_of(), supply_of()
    with closing(supply.cache), closing(other.cache):
        at_hand = supply.ensure(order_of(library, described, 0, 2), lambda done, total: None, lambda: False)
        other.ensure(order_of(library, described, 2, 5), lambda done, total: None, lambda: False)
        supply.confirm(at_hand)
