"""Whole loads over the store lane into the range cache, while lenders die: nothing is wrong, hardly anything twice."""

import random
import threading
from contextlib import ExitStack

import numpy as np
import pytest

from hydra.protocol.endpoint import Endpoint
from hydra.protocol.model.encoding import F32
from hydra.protocol.model.model_spec import StoredFile, TensorRange
from hydra.protocol.range_window import OPEN_MAX, WINDOW_CHUNK_BYTES
from hydra.protocol.refusal import RefusalError
from hydra.protocol.store_lane import decode_answer, decode_ask
from hydra.protocol.wires.zmq_wire import ZmqWires
from hydra.store.cache.cache_room import CacheRoom
from hydra.store.cache.range_cache import RangeCache
from hydra.store.cache.retry_policy import RetryPolicy
from hydra.store.lending.lane_source import LaneSource
from tests.wire.store_child import PRINT, TOKEN
from tests.wire.test_store_processes import serving

SIZES = {"a.safetensors": 40 << 20, "b.safetensors": (9 << 20) + 77}
FILES = [StoredFile(file=name, size_bytes=size, tag="t") for name, size in SIZES.items()]
RANGES = [  # every second stretch of the files, so that what is not wanted lies between
    TensorRange(name=f"{name}{at}", file=name, offset=at, length=min(3 << 20, size - at), encoding=F32, shape=(1,))
    for name, size in SIZES.items()
    for at in range(100, size, 5 << 20)
]
WANTED = sum(tensor.length for tensor in RANGES)
THREADS = 2
DISK_S = 0.01


@pytest.fixture(scope="module")
def lent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lent")
    for name, size in SIZES.items():
        (folder / name).write_bytes(random.Random(name).randbytes(size))
    return folder


class CountedLine:
    """A line that writes down which bytes came over it."""

    def __init__(self, line, came):
        self._line, self._came = line, came
        self._asked = {}
        self.close = line.close

    def send(self, frames):
        ask = decode_ask(frames)
        self._asked[ask.number] = ask
        self._line.send(frames)

    def receive(self, timeout_s):
        frames = self._line.receive(timeout_s)
        if frames is not None and len(frames) == 2:
            ask = self._asked[decode_answer(frames).number]
            with self._came.lock:
                self._came.times[ask.file][ask.offset : ask.offset + ask.length] += 1
        return frames


class Came:
    """How often each byte came."""

    def __init__(self):
        self.lock = threading.Lock()
        self.times = {name: np.zeros(size, np.uint8) for name, size in SIZES.items()}

    @property
    def total(self):
        return sum(int(times.sum()) for times in self.times.values())

    @property
    def most(self):
        return max(int(times.max()) for times in self.times.values())


class Load:
    """One worker's load, with `strike(bytes_done)` called at each progress."""

    def __init__(self, root, *addrs):
        self.wires, self.came = ZmqWires(), Came()
        self.source = LaneSource([Endpoint(addr) for addr in addrs], PRINT, self._open, TOKEN)
        patience = RetryPolicy(tries=200, first_s=0.05, longest_s=0.1, deadline_s=60.0)
        self.cache = RangeCache(CacheRoom(root=root), patience, THREADS)

    def _open(self, endpoint):
        return CountedLine(self.wires.store_line(endpoint), self.came)

    def run(self, strike):
        return self.cache.ensure("key", FILES, RANGES, [self.source], lambda done, total: strike(done), lambda: False)

    def close(self):
        self.cache.close()
        self.wires.close()


@pytest.fixture
def loading(tmp_path):
    with ExitStack() as stack:

        def begin(*addrs):
            load = Load(tmp_path / "cache", *addrs)
            stack.callback(load.close)
            return load

        yield begin


def same(folder, lent):
    for tensor in RANGES:
        whole = (lent / tensor.file).read_bytes()
        with (folder / tensor.file).open("rb") as file:
            file.seek(tensor.offset)
            assert file.read(tensor.length) == whole[tensor.offset : tensor.offset + tensor.length], tensor.name


def test_only_what_is_wanted_comes_and_each_byte_once(lent, loading):
    with serving(lent) as (_, addr):
        load = loading(addr)
        folder = load.run(lambda done: None)
    same(folder, lent)
    assert load.came.total == WANTED and load.came.most == 1


def test_what_is_here_is_not_asked_for_again(lent, loading):
    with serving(lent) as (_, addr):
        loading(addr).run(lambda done: None)
        again = loading(addr)
        same(again.run(lambda done: None), lent)
        assert again.came.total == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_lender_that_is_killed_leaves_the_rest_to_a_peer(seed, lent, loading):
    after = random.Random(seed).randrange(WANTED // 10, WANTED * 8 // 10)
    with serving(lent, disk_s=DISK_S) as (victim, first), serving(lent) as (_, second):
        load = loading(first, second)

        def strike(done):
            if done > after:
                victim.kill()

        same(load.run(strike), lent)
        assert victim.wait(10) != 0, "it was never killed"
    assert load.came.most <= 2
    assert load.came.total <= WANTED + THREADS * OPEN_MAX * WINDOW_CHUNK_BYTES


def test_a_lender_that_is_killed_again_and_again_is_waited_for(lent, loading):
    rng = random.Random(7)
    kills = sorted(rng.randrange(WANTED // 10, WANTED) for _ in range(4))
    with ExitStack() as stack:
        victim, addr = stack.enter_context(serving(lent, disk_s=DISK_S))
        alive = [victim]
        returning = []

        def strike(done):
            back = all(not thread.is_alive() for thread in returning)
            if kills and done > kills[0] and back:
                kills.pop(0)
                alive[-1].kill()
                returning.append(threading.Thread(target=come_back))
                returning[-1].start()

        def come_back():
            alive[-1].wait()
            alive.append(stack.enter_context(serving(lent, addr, disk_s=DISK_S))[0])

        load = loading(addr)
        same(load.run(strike), lent)
        for thread in returning:
            thread.join()
    assert len(returning) >= 2, "it was hardly ever killed"
    assert load.came.most <= 2
    assert load.came.total <= WANTED + len(returning) * THREADS * OPEN_MAX * WINDOW_CHUNK_BYTES


def test_nobody_lends_it_is_a_refusal_that_names_them(lent, tmp_path, loading):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "c.safetensors").write_bytes(b"x")
    with serving(tmp_path / "other") as (_, addr), pytest.raises(RefusalError) as caught:
        loading(addr).run(lambda done: None)
    assert addr in caught.value.refusal.message and "no file of this model" in caught.value.refusal.message
