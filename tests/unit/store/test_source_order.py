"""Which source is asked first: as the order says, but whoever used up our patience once is not waited for again."""

import pytest

from hydra.protocol.model.encoding import F32
from hydra.protocol.model.model_spec import StoredFile, TensorRange
from hydra.store.cache.cache_room import CacheRoom
from hydra.store.cache.range_cache import RangeCache
from hydra.store.cache.range_source import SourceFault, SourceUnfit
from hydra.store.cache.retry_policy import RetryPolicy

FILE = bytes(range(256)) * 64
STORED = [StoredFile(file="f", size_bytes=len(FILE), tag="t")]
RANGES = [
    TensorRange(name=f"t{at}", file="f", offset=at, length=100, encoding=F32, shape=(25,))
    for at in range(0, 5000, 1000)
]
PATIENCE = RetryPolicy(tries=3, first_s=0.0, longest_s=0.0)


class Giving:
    def __init__(self, name):
        self.name, self.asked = name, 0

    def read(self, file, offset, length):
        self.asked += 1
        yield FILE[offset : offset + length]


class Failing(Giving):
    def __init__(self, name, fault):
        super().__init__(name)
        self.fault = fault

    def read(self, file, offset, length):
        self.asked += 1
        raise self.fault


def load(tmp_path, *sources):
    cache = RangeCache(CacheRoom(root=tmp_path), PATIENCE, threads=1)
    folder = cache.ensure("key", STORED, RANGES, sources, lambda done, total: None, lambda: False)
    for tensor in RANGES:
        with (folder / "f").open("rb") as file:
            file.seek(tensor.offset)
            assert file.read(tensor.length) == FILE[tensor.offset : tensor.offset + tensor.length]
    cache.close()


def test_the_first_that_gives_is_the_only_one_asked(tmp_path):
    near, far = Giving("near"), Giving("far")
    load(tmp_path, near, far)
    assert (near.asked, far.asked) == (len(RANGES), 0)


def test_patience_is_lost_once_and_not_once_for_each_piece(tmp_path):
    dead, far = Failing("dead", SourceFault("nobody answers")), Giving("far")
    load(tmp_path, dead, far)
    assert (dead.asked, far.asked) == (PATIENCE.tries, len(RANGES))


@pytest.mark.parametrize("order", [0, 1])
def test_whoever_lacks_one_piece_is_still_asked_for_the_next(order, tmp_path):
    lacks, far = Failing("lacks", SourceUnfit("not in the slice here")), Giving("far")
    load(tmp_path, *((lacks, far) if order == 0 else (far, lacks)))
    assert (lacks.asked, far.asked) == (len(RANGES) if order == 0 else 0, len(RANGES))
