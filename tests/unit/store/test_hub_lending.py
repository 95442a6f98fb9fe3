"""A Hub model lent by a machine that may reach the Hub: what is asked for, little more, and each byte fetched once."""

import threading

import attrs
import pytest

from hydra.protocol.model.source import HubCommit
from hydra.protocol.refusal import RefusalError
from hydra.store.cache.cache_room import CacheRoom
from hydra.store.cache.range_source import SourceFault
from hydra.store.hub.hub_lending import AHEAD_BYTES, BUSY_S, HubPlace, lend_model
from hydra.store.lending.file_lender import FileLender
from hydra.store.models.library import LocalLibrary
from hydra.store.models.model_ref import HubAccess


class Hub:
    """A RangeSource over a directory that writes down what it gave."""

    name = "hub:org/name@commit"

    def __init__(self, directory):
        self.directory, self.given, self.fault, self.closed = directory, [], None, 0
        self.go_on = threading.Event()
        self.go_on.set()

    def read(self, file, offset, length):
        if self.fault is not None:
            raise self.fault
        self.go_on.wait(60)
        self.given.append((file, offset, offset + length))
        yield (self.directory / file).read_bytes()[offset : offset + length]

    def close(self):
        self.closed += 1

    @property
    def n_bytes(self):
        return sum(end - start for _, start, end in self.given)


@attrs.frozen
class Lent:
    place: HubPlace
    hub: Hub
    described: object
    directory: object


@pytest.fixture
def lent(copy_of, tmp_path):
    directory = copy_of("sharded")
    described = LocalLibrary().describe(str(directory))
    hub = Hub(directory)
    small = tmp_path / "small"
    small.mkdir()
    (small / "config.json").write_text("{}")
    place = HubPlace(
        attrs.evolve(described, folder=str(small)), hub, CacheRoom(root=tmp_path / "cache"), close_source=hub.close
    )
    yield Lent(place, hub, described, directory)
    hub.go_on.set()
    place.close()


def refused(place, *asked):
    with pytest.raises(RefusalError) as caught:
        place.read(*asked)
    return caught.value.refusal.code


def test_tensors_come_true_and_each_byte_is_fetched_once(lent):
    for _ in range(2):
        for tensor in lent.described.tensors:
            whole = (lent.directory / tensor.file).read_bytes()
            got = lent.place.read(tensor.file, tensor.offset, tensor.length)
            assert got.data == whole[tensor.offset : tensor.offset + tensor.length]
            assert got.file_bytes == len(whole)
    assert lent.hub.n_bytes == sum(tensor.length for tensor in lent.described.tensors)


def test_the_rest_of_a_tensor_is_fetched_with_its_beginning_and_nothing_behind_it(lent):
    tensor = max(lent.described.tensors, key=lambda t: t.length)
    assert 100 < tensor.length < AHEAD_BYTES
    for at in range(tensor.offset, tensor.offset + tensor.length, 100):
        lent.place.read(tensor.file, at, min(100, tensor.offset + tensor.length - at))
    assert lent.hub.given == [(tensor.file, tensor.offset, tensor.offset + tensor.length)]


def test_the_small_files_come_from_the_snapshot(lent):
    assert lent.place.read("config.json", 0, 2).data == b"{}"
    assert not lent.hub.given


@pytest.mark.parametrize(
    ("file", "offset", "length"),
    [("../secret", 0, 1), ("model-00009.safetensors", 0, 1), ("config.json", 0, 3), ("", 0, 0)],
)
def test_what_is_none_of_it_is_refused(lent, file, offset, length):
    assert refused(lent.place, file, offset, length) == "invalid_value"


def test_beyond_the_end_is_refused_and_the_size_is_told_without_a_fetch(lent):
    stored = lent.described.files[0]
    assert refused(lent.place, stored.file, stored.size_bytes, 1) == "invalid_value"
    assert refused(lent.place, stored.file, -1, 1) == "invalid_value"
    assert lent.place.read(stored.file, 0, 0).file_bytes == stored.size_bytes
    assert not lent.hub.given


def test_a_hub_that_cannot_be_reached_is_a_refusal_and_the_next_try_may_do_better(lent):
    tensor = lent.described.tensors[0]
    lent.hub.fault = SourceFault("no route")
    assert refused(lent.place, tensor.file, tensor.offset, tensor.length) == "source_unreachable"
    lent.hub.fault = None
    assert len(lent.place.read(tensor.file, tensor.offset, tensor.length).data) == tensor.length


def test_whoever_finds_it_busy_is_told_so(lent, monkeypatch):
    monkeypatch.setattr("hydra.store.hub.hub_lending.BUSY_S", BUSY_S / 100)
    first, second = lent.described.tensors[:2]
    lent.hub.go_on.clear()
    fetching = threading.Thread(target=lent.place.read, args=(first.file, first.offset, first.length))
    fetching.start()
    assert refused(lent.place, second.file, second.offset, second.length) == "timeout"
    lent.hub.go_on.set()
    fetching.join()
    assert len(lent.place.read(second.file, second.offset, second.length).data) == second.length


def test_its_entry_is_in_use_until_it_is_taken_back(lent, tmp_path):
    tensor = lent.described.tensors[0]
    lent.place.read(tensor.file, tensor.offset, tensor.length)
    tight = CacheRoom(root=tmp_path / "cache", max_bytes=1)
    with pytest.raises(RefusalError):
        tight.make_room(1)
    keeper = FileLender()
    keeper.lend("print", lent.place)
    keeper.close()
    assert lent.hub.closed == 1
    tight.make_room(1)
    again = lent.place.read(tensor.file, tensor.offset, tensor.length)
    assert again.data == (lent.directory / tensor.file).read_bytes()[tensor.offset : tensor.offset + tensor.length]


def test_a_directory_is_lent_as_it_is_and_a_hub_model_through_the_cache(lent, tmp_path):
    keeper, room = FileLender(), CacheRoom(root=tmp_path / "other")
    tensor = lent.described.tensors[0]
    asked = (lent.described.spec.fingerprint, tensor.file, tensor.offset, 4)
    lend_model(keeper, lent.described, HubAccess(), room)
    assert len(keeper.read(*asked).data) == 4 and not room.root.exists()
    nowhere = HubAccess(endpoint="http://127.0.0.1:1")
    lend_model(keeper, attrs.evolve(lent.described, sources=(HubCommit("org/name", "0" * 40),)), nowhere, room)
    with pytest.raises(RefusalError) as caught:
        keeper.read(*asked)
    assert caught.value.refusal.code == "source_unreachable"
    keeper.close()


def test_what_is_damaged_in_the_cache_after_it_came_is_brought_once_more(lent, tmp_path):
    tensor = max(lent.described.tensors, key=lambda tensor: tensor.length)
    true = (lent.directory / tensor.file).read_bytes()[tensor.offset : tensor.offset + tensor.length]
    assert lent.place.read(tensor.file, tensor.offset, tensor.length).data == true
    (cached,) = (tmp_path / "cache").glob(f"*/{tensor.file}")
    raw = bytearray(cached.read_bytes())
    raw[tensor.offset + 5] ^= 1
    cached.write_bytes(raw)
    other = next(each for each in lent.described.tensors if each.file == tensor.file and each != tensor)
    lent.place.read(other.file, other.offset, other.length)  # which opens the file anew
    before = lent.hub.n_bytes
    assert lent.place.read(tensor.file, tensor.offset, tensor.length).data == true
    assert lent.hub.n_bytes - before == tensor.length
