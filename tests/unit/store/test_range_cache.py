"""The cache of ranges over a source in memory: what is wanted comes, once, in spite of faults, and nothing else."""

import os
import random
import threading
from collections import Counter
from contextlib import closing

import attrs
import pytest

from hydra.protocol.model.encoding import F32
from hydra.protocol.model.model_spec import StoredFile, TensorRange
from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.cache import range_cache, range_fetch
from hydra.store.cache.cache_room import LOCK, CacheRoom
from hydra.store.cache.range_cache import RangeCache
from hydra.store.cache.range_source import RangeIgnored, SourceFault, SourceUnfit
from hydra.store.cache.retry_policy import RetryPolicy

SIZE = 40_000
BLOCK = 4096  # what the journal of an entry takes on the disk
CONTENT = {name: random.Random(name).randbytes(SIZE) for name in ("a.safetensors", "b.safetensors")}
FILES = tuple(StoredFile(file=name, size_bytes=SIZE, tag=f"tag-{name}") for name in CONTENT)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch):
    monkeypatch.setattr(range_fetch, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(range_cache, "REQUEST_BYTES", 5000)


def tensor(file, offset, length):
    return TensorRange(name=f"{file}@{offset}", file=file, offset=offset, length=length, encoding=F32, shape=(1,))


A, B = (tensor("a.safetensors", 100, 7000), tensor("b.safetensors", 30_000, 3000))


@attrs.define(eq=False)
class MemorySource:
    """Hands out CONTENT; `faults` are raised, one per read, after `after` bytes of it."""

    name: str = "memory"
    faults: list[Exception] = attrs.field(factory=list)
    after: int = 0
    reads: list[tuple[str, int, int]] = attrs.field(factory=list)
    handed: Counter = attrs.field(factory=Counter)  # (file, byte) -> how often
    lock: threading.Lock = attrs.field(factory=threading.Lock)

    def read(self, file, offset, length):
        with self.lock:
            self.reads.append((file, offset, length))
            fault = self.faults.pop(0) if self.faults else None
        end = offset + (length if fault is None else min(length, self.after))
        for start in range(offset, end, 700):
            data = CONTENT[file][start : min(start + 700, end)]
            with self.lock:
                self.handed.update((file, byte) for byte in range(start, start + len(data)))
            yield data
        if fault is not None:
            raise fault


@attrs.define
class Clock:
    """Time that passes only by sleeping."""

    now_s: float = 0.0

    def policy(self, **changes) -> RetryPolicy:
        return RetryPolicy(now=lambda: self.now_s, sleep=self.sleep, jitter=lambda: 1.0, **changes)

    def sleep(self, delay_s):
        self.now_s += delay_s


def cache_at(root, **changes) -> RangeCache:
    changes = {"policy": Clock().policy(), "threads": 1} | changes
    return RangeCache(CacheRoom(root=root, max_bytes=changes.pop("max_bytes", None)), **changes)


def ensure(cache, source, *ranges, key="k", files=FILES, progress=lambda done, total: None, cancelled=lambda: False):
    sources = source if isinstance(source, tuple) else (source,)
    return cache.ensure(key, files, ranges, sources, progress, cancelled)


def held(folder, *ranges):
    for wanted in ranges:
        raw = (folder / wanted.file).read_bytes()
        assert len(raw) == SIZE
        end = wanted.offset + wanted.length
        assert raw[wanted.offset : end] == CONTENT[wanted.file][wanted.offset : end]
    return True


def test_wanted_ranges_come_once_and_nothing_else(tmp_path):
    source, told = MemorySource(), []
    folder = ensure(cache_at(tmp_path), source, A, B, progress=lambda done, total: told.append((done, total)))
    assert held(folder, A, B)
    assert set(source.handed.values()) == {1} and source.handed.total() == A.length + B.length
    assert told[0] == (0, 10_000) and told[-1] == (10_000, 10_000) and told == sorted(told)


def test_neighbours_are_fetched_together(tmp_path):
    source = MemorySource()
    ensure(cache_at(tmp_path), source, tensor("a.safetensors", 500, 600), tensor("a.safetensors", 1100, 900))
    assert source.reads == [("a.safetensors", 500, 1500)]


def test_another_life_finds_what_was_fetched_and_checks_it_once(tmp_path, monkeypatch):
    ensure(cache_at(tmp_path), MemorySource(), A)
    again, source = cache_at(tmp_path), MemorySource()
    folder = ensure(again, source, A, B)
    assert source.handed.total() == B.length and held(folder, A, B)
    monkeypatch.setattr("os.pread", lambda *_: pytest.fail("what this process has checked it believes"))
    ensure(again, source, A, B)
    assert source.handed.total() == B.length


@pytest.mark.parametrize("same_life", [False, True])
@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "journal"])
def test_what_was_harmed_on_the_disk_is_fetched_again(tmp_path, harm, same_life):
    first = cache_at(tmp_path)
    folder = ensure(first, MemorySource(), A, B)
    data, journal = folder / A.file, folder / f"{A.file}.ranges"
    if harm == "flip":
        raw = bytearray(data.read_bytes())
        raw[A.offset + 1500] ^= 1
        data.write_bytes(raw)
    elif harm == "cut":
        os.truncate(data, A.offset + 1000)
    elif harm == "gone":
        data.unlink()
    else:
        journal.write_bytes(journal.read_bytes()[:-30] + b'{"at": [')
    source = MemorySource()
    folder = ensure(first if same_life else cache_at(tmp_path), source, A, B)
    assert held(folder, A, B)
    assert source.handed.total() == {"flip": 1000, "cut": 6000, "gone": 7000, "journal": 1000}[harm]
    source = MemorySource()
    ensure(cache_at(tmp_path), source, A, B)
    assert not source.reads, "mended for good"


def test_a_journal_of_another_version_counts_for_nothing(tmp_path):
    folder = ensure(cache_at(tmp_path), MemorySource(), A)
    journal = folder / f"{A.file}.ranges"
    journal.write_text(journal.read_text().replace("tag-a", "tag-z"))
    source = MemorySource()
    ensure(cache_at(tmp_path), source, A)
    assert source.handed.total() == A.length


@pytest.mark.parametrize("change", [{"tag": "other"}, {"size_bytes": SIZE - 1}])
def test_another_tag_or_size_is_another_entry(tmp_path, change):
    cache = cache_at(tmp_path)
    first = ensure(cache, MemorySource(), B)
    source = MemorySource()
    second = ensure(cache, source, B, files=(FILES[0], attrs.evolve(FILES[1], **change)))
    assert second != first and source.handed.total() == B.length
    assert ensure(cache, source, B) == first and source.handed.total() == B.length


def test_a_cut_body_costs_nothing_that_had_come(tmp_path):
    source = MemorySource(faults=[SourceFault("cut")] * 3, after=1800)
    folder = ensure(cache_at(tmp_path), source, A)
    assert held(folder, A) and set(source.handed.values()) == {1}


def test_a_source_is_tried_with_growing_waits_then_the_next_one(tmp_path):
    clock = Clock()
    bad, good = MemorySource(name="bad", faults=[SourceFault("HTTP 500")] * 99), MemorySource(name="good")
    folder = ensure(cache_at(tmp_path, policy=clock.policy()), (bad, good), A, B)
    assert held(folder, A, B) and len(bad.reads) == 3 and len(good.reads) == 3
    assert clock.now_s == 0.5 + 1.0, "no longer, where somebody else has it; and once for all pieces"


def test_the_only_source_left_is_tried_for_longer(tmp_path):
    clock = Clock()
    slow = MemorySource(name="slow", faults=[SourceFault("HTTP 500")] * 9)
    unfit = MemorySource(name="unfit", faults=[SourceUnfit("not here")] * 9)
    folder = ensure(cache_at(tmp_path, policy=clock.policy()), (slow, unfit), B)
    assert held(folder, B) and len(slow.reads) == 3 + 7 and len(unfit.reads) == 1
    slow.faults = [SourceFault("HTTP 500")] * 99
    with pytest.raises(RefusalError, match="slow: HTTP 500; unfit: not here"):
        ensure(cache_at(tmp_path / "other", policy=clock.policy()), (slow, unfit), B)


def test_retry_after_is_honoured_and_bounded(tmp_path):
    clock = Clock()
    source = MemorySource(faults=[SourceFault("HTTP 429", retry_after_s=7.0)])
    ensure(cache_at(tmp_path, policy=clock.policy()), source, B)
    assert clock.now_s == 7.0
    source = MemorySource(faults=[SourceFault("HTTP 429", retry_after_s=3000.0)])
    with pytest.raises(RefusalError, match="429"):
        ensure(cache_at(tmp_path / "other", policy=clock.policy()), source, B)
    assert clock.now_s == 7.0


def test_an_unfit_source_is_not_tried_again(tmp_path):
    unfit = MemorySource(name="hub:x", faults=[SourceUnfit("has changed there")])
    with pytest.raises(RefusalError) as caught:
        ensure(cache_at(tmp_path), unfit, B)
    said = caught.value.refusal
    assert said.code == "source_unreachable" and len(unfit.reads) == 1
    assert "3000 bytes of b.safetensors" in said.message and "hub:x: has changed there" in said.message


def test_a_trickle_is_a_fault(tmp_path):
    clock = Clock()

    @attrs.define(eq=False)
    class Dripping(MemorySource):
        def read(self, file, offset, length):
            for data in MemorySource.read(self, file, offset, length):
                clock.sleep(40.0)
                yield data

    slow, good = Dripping(name="slow"), MemorySource(name="good")
    wanted = tensor("a.safetensors", 0, 5000)
    folder = ensure(cache_at(tmp_path, policy=clock.policy(tries=2)), (slow, good), wanted)
    assert held(folder, wanted) and len(slow.reads) == 2 and good.handed.total() == 5000 - 2 * 700


def test_where_ranges_are_ignored_the_whole_file_is_taken_once(tmp_path):
    @attrs.define(eq=False)
    class WholeOnly(MemorySource):
        def read(self, file, offset, length):
            if (offset, length) != (0, SIZE):
                raise RangeIgnored("only whole")
            yield from MemorySource.read(self, file, offset, length)

    source = WholeOnly()
    cache = cache_at(tmp_path, threads=4)
    folder = ensure(cache, source, A, tensor("a.safetensors", 20_000, 9000))
    assert held(folder, A) and source.reads == [("a.safetensors", 0, SIZE)], "and not the file nobody needs"
    ensure(cache, source, tensor("a.safetensors", 39_000, 500))
    assert len(source.reads) == 1, "what came beside the wanted ranges was kept"


def test_a_refusal_ends_it_at_once_and_keeps_what_has_come(tmp_path):
    source = MemorySource(faults=[SourceFault("cut"), refuse("access_denied", "no")], after=3000)
    with pytest.raises(RefusalError) as caught:
        ensure(cache_at(tmp_path), source, A)
    assert caught.value.refusal.code == "access_denied"
    source = MemorySource()
    assert held(ensure(cache_at(tmp_path), source, A), A) and source.handed.total() == 2000


def test_a_cancelled_download_can_be_resumed(tmp_path):
    source, done = MemorySource(), []
    with pytest.raises(RefusalError) as caught:
        ensure(
            cache_at(tmp_path),
            source,
            A,
            progress=lambda n, total: done.append(n),
            cancelled=lambda: bool(done) and done[-1] >= 3000,
        )
    assert caught.value.refusal.code == "cancelled"
    kept = done[-1]
    rest = MemorySource()
    assert held(ensure(cache_at(tmp_path), rest, A), A) and rest.handed.total() == A.length - kept
    assert 3000 <= kept < A.length


def test_cancelling_ends_a_wait(tmp_path):
    clock = Clock()
    source = MemorySource(faults=[SourceFault("HTTP 503", retry_after_s=200.0)])
    with pytest.raises(RefusalError) as caught:
        ensure(cache_at(tmp_path, policy=clock.policy()), source, A, cancelled=lambda: clock.now_s > 3)
    assert caught.value.refusal.code == "cancelled" and clock.now_s < 4


@pytest.mark.parametrize("bad", [tensor("c.safetensors", 0, 4), tensor("a.safetensors", SIZE - 3, 4)])
def test_a_range_outside_the_files_is_refused(tmp_path, bad):
    with pytest.raises(RefusalError, match="outside"):
        ensure(cache_at(tmp_path), MemorySource(), bad)


def test_the_least_recently_used_entry_goes_and_never_one_in_use(tmp_path):
    def disk(folder):
        return sum(path.stat().st_blocks * 512 for path in folder.iterdir())

    def left_alone(key, **changes):
        with closing(cache_at(tmp_path, **changes)) as cache:
            return ensure(cache, MemorySource(), A, key=key)

    old, older = left_alone("old"), left_alone("older")
    user = cache_at(tmp_path)
    used = ensure(user, MemorySource(), A, key="used")
    for age, folder in enumerate((old, older, used)):
        os.utime(folder / LOCK, (1000 - age, 1000 - age))
    fresh = left_alone("new", max_bytes=disk(old) + disk(used) + A.length + BLOCK)
    assert not older.exists() and old.exists() and used.exists() and held(fresh, A)
    with pytest.raises(RefusalError) as caught:
        left_alone("large", max_bytes=disk(used) + 100)
    assert caught.value.refusal.code == "does_not_fit" and "max_cache_gb" in caught.value.refusal.message
    assert not old.exists() and used.exists() and held(used, A)
    user.close()
    left_alone("last", max_bytes=A.length + BLOCK)
    assert not used.exists()


def test_two_processes_fill_one_entry_side_by_side(tmp_path):
    sources = [MemorySource(), MemorySource()]
    parts = [[tensor("a.safetensors", 2000 * (2 * i + j), 2000) for i in range(8)] for j in range(2)]
    threads = [
        threading.Thread(target=ensure, args=(cache_at(tmp_path), source, *part))
        for source, part in zip(sources, parts, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    nothing = MemorySource()
    folder = ensure(cache_at(tmp_path), nothing, *parts[0], *parts[1])
    assert held(folder, *parts[0], *parts[1]) and not nothing.reads


@pytest.mark.parametrize(
    "line",
    [
        "null", "[]", "{", '{"at": 0}', '{"at": -1, "len": 5, "sum": "SUM"}', '{"at": 0, "len": 0, "sum": "SUM"}',
        '{"at": 39990, "len": 11, "sum": "SUM"}', '{"at": 0, "len": true, "sum": "SUM"}',
        '{"at": 0, "len": 5, "sum": "short"}', '{"at": 0, "len": 99999999999, "sum": "SUM"}', "[" * 3000, "x" * 5000,
    ],
)  # fmt: skip
def test_nonsense_in_a_journal_is_no_chunk(tmp_path, line):
    """Neither is it read from the file, nor does it hide what stands before and behind it."""
    folder = ensure(cache_at(tmp_path), MemorySource(), B)
    with (folder / f"{B.file}.ranges").open("a") as journal:
        journal.write(line.replace("SUM", "0" * 32) + "\n")
    source = MemorySource()
    folder = ensure(cache_at(tmp_path), source, B, tensor(B.file, 0, 500))
    assert source.handed.total() == 500 and held(folder, B)
    source = MemorySource()
    assert held(ensure(cache_at(tmp_path), source, B, tensor(B.file, 0, 500)), B) and not source.reads
    retracted = [said for said in (folder / f"{B.file}.ranges").read_text().splitlines() if '"bad"' in said]
    assert not retracted


def test_a_chunk_larger_than_any_that_is_written_is_not_read(tmp_path):
    size = 10 << 30
    files = (StoredFile(file=B.file, size_bytes=size, tag="t"),)
    folder = ensure(cache_at(tmp_path), MemorySource(), B, files=files)
    with (folder / f"{B.file}.ranges").open("a") as journal:
        journal.write(f'{{"at": 0, "len": {size}, "sum": "{"0" * 32}"}}\n')
    source = MemorySource()
    ensure(cache_at(tmp_path), source, B, files=files)
    assert not source.reads and '"bad"' not in (folder / f"{B.file}.ranges").read_text()
