"""A disk that is full, read-only or gone under the cache: a typed refusal that names it, and nothing else is harmed."""

import errno
import os
import shutil
from contextlib import closing, contextmanager
from pathlib import Path

import attrs
import pytest

from hydra.protocol.ids import Epoch, RouteId
from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.model.source import Directory as OnDisk
from hydra.protocol.refusal import RefusalError
from hydra.store.cache import range_cache, range_fetch
from hydra.store.cache.cache_room import LOCK, CacheRoom
from hydra.store.cache.range_cache import RangeCache
from hydra.store.cache.retry_policy import RetryPolicy
from hydra.store.files.whole_file import write_whole
from hydra.store.hub.hub import HubClient
from hydra.store.hub.hub_library import HubLibrary
from hydra.store.lending.file_lender import FileLender
from hydra.store.models.library import LocalLibrary
from hydra.store.models.local_copy import why_unlike
from hydra.store.models.model_ref import HubAccess
from tests.fake_hub import fake_hub

PWRITE, WRITE, FSYNC, OPEN = os.pwrite, os.write, os.fsync, os.open


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch):
    monkeypatch.setattr(range_fetch, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(range_cache, "REQUEST_BYTES", 5000)


@attrs.define(eq=False)
class Directory:
    """A RangeSource over a directory that counts what it gave."""

    folder: Path
    name: str = "directory"
    n_bytes: int = 0

    def read(self, file, offset, length):
        self.n_bytes += length
        yield (self.folder / file).read_bytes()[offset : offset + length]


@attrs.define(eq=False)
class Cached:
    """One model on its way into a cache."""

    described: object
    source: Directory
    cache: RangeCache

    def ensure(self):
        key, wanted = self.described.spec.fingerprint, self.described.tensors
        return self.cache.ensure(
            key, self.described.files, wanted, [self.source], lambda done, total: None, lambda: False
        )

    def refused(self):
        before = n_open()
        with pytest.raises(RefusalError) as caught:
            self.ensure()
        assert n_open() - before <= 1, "but for the lock of the entry nothing stays open"
        return caught.value.refusal

    def is_whole(self, folder):
        return all(
            (folder / t.file).read_bytes()[t.offset :][: t.length]
            == (self.source.folder / t.file).read_bytes()[t.offset :][: t.length]
            for t in self.described.tensors
        )


def n_open():
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0


@pytest.fixture
def cached(saved, tmp_path):
    described = LocalLibrary().describe(str(saved / "sharded"))
    cache = RangeCache(CacheRoom(root=tmp_path / "cache"), RetryPolicy(tries=1), threads=1)
    with closing(cache):
        yield Cached(described, Directory(saved / "sharded"), cache)


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def full_after(n_bytes, place):
    """The disk takes `n_bytes` more, the last of them as a part of what was to be written."""
    left = [n_bytes]

    def taking(write):
        def write_some(file, data, *at):
            if left[0] <= 0:
                no_space()
            done = write(file, data[: left[0]], *at)
            left[0] -= done
            return done

        return write_some

    with pytest.MonkeyPatch.context() as patched:
        if place == "data":
            patched.setattr("os.pwrite", taking(PWRITE))
        elif place == "journal":
            patched.setattr("os.write", taking(WRITE))
        elif place == "sync":
            patched.setattr("os.fsync", no_space)
        elif place == "room":
            patched.setattr("os.open", lambda *asked, **how: no_space())
        else:
            patched.setattr("os.ftruncate", no_space)
        yield


@pytest.mark.parametrize(
    ("place", "n_bytes"),
    [("data", 0), ("data", 2500), ("journal", 0), ("journal", 500), ("sync", 0), ("room", 0), ("size", 0)],
)
def test_a_disk_that_fills_up_is_named_and_the_rest_comes_when_there_is_room(cached, tmp_path, place, n_bytes):
    with full_after(n_bytes, place):
        refusal = cached.refused()
    assert refusal.code == "does_not_fit" and str(tmp_path / "cache") in refusal.message
    assert "full" in refusal.message and "cache_dir" in refusal.message
    cached.source.n_bytes = 0
    assert cached.is_whole(cached.ensure())
    wanted = sum(tensor.length for tensor in cached.described.tensors)
    assert cached.source.n_bytes <= wanted
    if n_bytes:
        assert cached.source.n_bytes < wanted, "what had come was kept"
    cached.source.n_bytes = 0
    again = RangeCache(cached.cache.room, RetryPolicy(tries=1))
    with closing(again):
        assert cached.is_whole(attrs.evolve(cached, cache=again).ensure()) and not cached.source.n_bytes


def order_of(described, folder):
    return LoadSlice(
        route=RouteId(1),
        epoch=Epoch(1, 1),
        spec=described.spec,
        dtype="float32",
        first_layer=0,
        end_layer=5,
        tensors=described.tensors,
        sources=(OnDisk(str(folder)),),
        files=described.files,
        block_size=16,
        kv_memory_bytes=0,
    )


def lends(keeper, described, true):
    for tensor in described.tensors:
        got = keeper.read(described.spec.fingerprint, tensor.file, tensor.offset, tensor.length)
        if got.data != (true / tensor.file).read_bytes()[tensor.offset :][: tensor.length]:
            return False
    return True


def test_what_was_lent_stays_lent_while_the_disk_is_full_and_after_the_cache_is_gone(cached, saved):
    keeper = FileLender()
    with closing(keeper):
        keeper.lend_slice(order_of(cached.described, cached.ensure()))
        other = LocalLibrary().describe(str(saved / "single"))
        with full_after(0, "data"):
            assert (
                attrs.evolve(cached, described=other, source=Directory(saved / "single")).refused().code
                == "does_not_fit"
            )
        assert lends(keeper, cached.described, saved / "sharded")
        shutil.rmtree(cached.cache.room.root)
        assert lends(keeper, cached.described, saved / "sharded")
        assert cached.is_whole(cached.ensure()), "it is made anew"


def test_a_cache_that_has_become_read_only_is_refused_by_name(cached, monkeypatch):
    def read_only(path, flags, *mode, **how):
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return OPEN(path, flags, *mode, **how)

    cached.ensure()
    monkeypatch.setattr("os.open", read_only)
    refusal = cached.refused()
    assert refusal.code == "source_unreachable" and "Read-only" in refusal.message and "cache_dir" in refusal.message


def test_a_full_disk_under_the_small_files_is_no_fault_of_the_hub(saved, tmp_path, monkeypatch):
    """It is not asked again and again, and what was begun does not stay."""
    tries = []

    def download(*_, **__):
        tries.append(1)
        no_space()

    with fake_hub() as hub:
        hub.add("org/m", saved / "single")
        library = HubLibrary(
            HubClient(HubAccess(endpoint=hub.url), tmp_path / "cache", RetryPolicy(sleep=lambda delay_s: None))
        )
        with monkeypatch.context() as patched, pytest.raises(RefusalError) as caught:
            patched.setattr("hydra.store.hub.hub.hf_hub_download", download)
            library.describe("org/m")
        assert caught.value.refusal.code == "does_not_fit" and len(tries) == 1
        assert str(tmp_path / "cache") in caught.value.refusal.message
        assert library.describe("org/m").spec.n_layers == 5


def test_half_a_small_file_does_not_stay(tmp_path, monkeypatch):
    write_whole(tmp_path / "f", b"before")
    with monkeypatch.context() as patched, pytest.raises(OSError, match="space"):
        patched.setattr(Path, "write_bytes", lambda path, content: path.write_text("half") and no_space())
        write_whole(tmp_path / "f", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["f"] and (tmp_path / "f").read_bytes() == b"before"


@pytest.mark.parametrize("fault", [PermissionError(errno.EACCES, "denied"), OSError(errno.EIO, "I/O error")])
def test_a_directory_that_cannot_be_looked_at_is_passed_over(saved, monkeypatch, fault):
    described = LocalLibrary().describe(str(saved / "single"))

    def fail(path):
        raise fault

    monkeypatch.setattr(Path, "is_dir", fail)
    assert "/models/m" in why_unlike("/models/m", described.spec, described.files)


def test_a_lock_is_all_that_stays_of_an_entry_that_never_was(cached, tmp_path):
    with full_after(0, "size"):
        cached.refused()
    (entry,) = (tmp_path / "cache").iterdir()
    files = {path.name: path.stat().st_size for path in entry.iterdir()}
    assert set(files.values()) == {0} and LOCK in files
