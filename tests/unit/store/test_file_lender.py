"""What a machine lends is what it was given to lend, byte for byte; whatever else is asked for is refused by code."""

import os
import shutil
import threading
from contextlib import closing
from pathlib import Path

import pytest

from hydra.protocol.ids import Epoch, RouteId
from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.model.source import Directory, directory_of
from hydra.protocol.refusal import RefusalError
from hydra.store.cache import range_fetch
from hydra.store.cache.cache_room import CacheRoom
from hydra.store.cache.range_cache import RangeCache
from hydra.store.cache.range_source import SourceUnfit
from hydra.store.cache.retry_policy import RetryPolicy
from hydra.store.lending.file_lender import MODELS_MAX, FileLender, WholeFiles
from hydra.store.models.library import LocalLibrary
from hydra.store.models.slice_ranges import slice_ranges


@pytest.fixture
def keeper():
    made = FileLender()
    yield made
    made.close()


@pytest.fixture
def lent(keeper, copy_of):
    """(keeper, the description of a model it lends whole, its directory)."""
    directory = copy_of("sharded")
    (directory / "tokenizer.json").write_text("{}")
    (directory / "notes.txt").write_text("private")
    described = LocalLibrary().describe(str(directory))
    keeper.lend_described(described)
    return keeper, described, directory


def order_of(described, first, end, folder):
    return LoadSlice(
        route=RouteId(1),
        epoch=Epoch(1, 1),
        spec=described.spec,
        dtype="float32",
        first_layer=first,
        end_layer=end,
        tensors=slice_ranges(described, first, end),
        sources=(Directory(str(folder)),),
        files=described.files,
        block_size=16,
        kv_memory_bytes=0,
    )


def n_open():
    """Descriptors of this process, where the system says."""
    listed = Path("/proc/self/fd")
    return len(list(listed.iterdir())) if listed.exists() else None


def refused(keeper, *asked):
    with pytest.raises(RefusalError) as caught:
        keeper.read(*asked)
    return caught.value.refusal


def test_every_tensor_and_the_small_files_come_as_they_are(lent):
    keeper, described, directory = lent
    print_ = described.spec.fingerprint
    for tensor in described.tensors:
        whole = (directory / tensor.file).read_bytes()
        got = keeper.read(print_, tensor.file, tensor.offset, tensor.length)
        assert got.data == whole[tensor.offset : tensor.offset + tensor.length]
        assert got.file_bytes == len(whole)
    for name in ("config.json", "tokenizer.json", "model.safetensors.index.json"):
        whole = (directory / name).read_bytes()
        size = keeper.read(print_, name, 0, 0).file_bytes
        assert keeper.read(print_, name, 0, size).data == whole


FILE = "model-00001-of-00003.safetensors"
REFUSALS = {
    "traversal": ("../single/model.safetensors", 0, 1, "invalid_value"),
    "an absolute path": ("/etc/passwd", 0, 1, "invalid_value"),
    "a path through the directory": (f"../sharded/{FILE}", 0, 1, "invalid_value"),
    "a dot": (".", 0, 1, "invalid_value"),
    "nothing": ("", 0, 1, "invalid_value"),
    "a name with a NUL": (f"{FILE}\0", 0, 1, "invalid_value"),
    "another case": (FILE.upper(), 0, 1, "invalid_value"),
    "a file of the directory that is none of the model's": ("notes.txt", 0, 1, "invalid_value"),
    "a small file that is not there": ("generation_config.json.bak", 0, 1, "invalid_value"),
    "before the beginning": (FILE, -1, 10, "invalid_value"),
    "a length below 0": (FILE, 0, -1, "invalid_value"),
    "one byte beyond the end": (FILE, "size", 1, "invalid_value"),
    "across the end": (FILE, "size-1", 2, "invalid_value"),
    "far beyond the end": (FILE, 1 << 62, 1, "invalid_value"),
    "a huge length": (FILE, 0, 1 << 62, "invalid_value"),
}


@pytest.mark.parametrize(("file", "offset", "length", "code"), REFUSALS.values(), ids=REFUSALS)
def test_what_was_not_lent_is_refused(lent, file, offset, length, code):
    keeper, described, directory = lent
    if isinstance(offset, str):
        offset = (directory / FILE).stat().st_size + (-1 if offset.endswith("-1") else 0)
    assert refused(keeper, described.spec.fingerprint, file, offset, length).code == code


def test_the_last_byte_is_inside(lent):
    keeper, described, directory = lent
    size = (directory / FILE).stat().st_size
    assert keeper.read(described.spec.fingerprint, FILE, size - 1, 1).data == (directory / FILE).read_bytes()[-1:]
    assert keeper.read(described.spec.fingerprint, FILE, size, 0).data == b""


@pytest.mark.parametrize("fingerprint", ["", "0" * 64, "../sharded"])
def test_a_model_that_is_not_held_is_refused(lent, fingerprint):
    assert refused(lent[0], fingerprint, FILE, 0, 1).code == "model_not_found"


def shorten(path):
    os.truncate(path, path.stat().st_size - 1)


def replace(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)


def overwrite(path):
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    os.utime(path, ns=(1, 1))  # whatever the clock's grain, the time of writing is another


def overwrite_unseen(path):
    """The time of writing is set back afterwards, as `rsync --inplace --times` from an older copy does."""
    before = path.stat()
    overwrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the clock's grain
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def link_out(path):
    secret = path.parent.parent / "secret"
    secret.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(secret)


@pytest.mark.parametrize("change", [shorten, replace, overwrite, overwrite_unseen, link_out, Path.unlink])
def test_a_file_that_changed_since_it_was_described_is_not_served(lent, change):
    keeper, described, directory = lent
    change(directory / FILE)
    assert refused(keeper, described.spec.fingerprint, FILE, 0, 8).code == "bad_model"
    keeper.read(described.spec.fingerprint, "model-00002-of-00003.safetensors", 0, 8)


def change_while_reading(monkeypatch, path, change):
    """Right before the bytes are taken, and after the file was found to be what it was."""
    read = os.preadv

    def read_late(*asked):
        monkeypatch.undo()
        change(path)
        return read(*asked)

    monkeypatch.setattr("os.preadv", read_late)


@pytest.mark.parametrize("change", [overwrite, overwrite_unseen])
def test_what_changes_under_a_read_is_not_served(lent, monkeypatch, change):
    keeper, described, directory = lent
    change_while_reading(monkeypatch, directory / FILE, change)
    assert refused(keeper, described.spec.fingerprint, FILE, 0, 8).code == "bad_model"


def test_a_file_that_was_linked_or_given_away_is_what_it_was(lent):
    """A backup by hard links moves the time of the last change of every file."""
    keeper, described, directory = lent
    keeper.lend_slice(order_of(described, 0, 1, directory))
    keeper.lend_described(described)
    other = FileLender()
    other.lend_slice(order_of(described, 0, 1, directory))
    tensor = slice_ranges(described, 0, 1)[0]
    asked = (described.spec.fingerprint, tensor.file, tensor.offset, tensor.length)
    for change in (
        lambda path: os.link(path, path.with_name("backup")),
        lambda path: path.chmod(0o400),
        lambda path: path.with_name("backup").unlink(),
    ):
        change(directory / tensor.file)
        assert keeper.read(*asked).data == other.read(*asked).data
    overwrite_unseen(directory / tensor.file)
    assert refused(keeper, *asked).code == refused(other, *asked).code == "bad_model", "and is still watched"
    other.close()


def test_described_anew_it_is_served_again_under_its_new_fingerprint(lent):
    keeper, described, directory = lent
    with (directory / "config.json").open("a") as config:
        config.write("\n")
    again = LocalLibrary().describe(str(directory))
    keeper.lend_described(again)
    assert again.spec.fingerprint != described.spec.fingerprint
    assert refused(keeper, described.spec.fingerprint, "config.json", 0, 1).code == "bad_model"
    assert keeper.read(again.spec.fingerprint, "config.json", 0, 1).data == b"{"


def test_a_small_file_that_leads_out_of_the_directory_is_not_lent(keeper, copy_of):
    directory = copy_of("single")
    secret = directory.parent / "secret"
    secret.write_text("private")
    (directory / "tokenizer.json").symlink_to(secret)
    described = LocalLibrary().describe(str(directory))
    with pytest.raises(RefusalError):
        keeper.lend_described(described)
    assert refused(keeper, described.spec.fingerprint, "tokenizer.json", 0, 1).code == "model_not_found"


def test_a_slice_is_lent_and_not_a_byte_beside_it(keeper, copy_of):
    directory = copy_of("sharded")
    described = LocalLibrary().describe(str(directory))
    keeper.lend_slice(order_of(described, 1, 3, directory))
    mine = {tensor.name for tensor in slice_ranges(described, 1, 3)}
    for tensor in described.tensors:
        asked = (described.spec.fingerprint, tensor.file, tensor.offset, tensor.length)
        if tensor.name in mine:
            whole = (directory / tensor.file).read_bytes()
            assert keeper.read(*asked).data == whole[tensor.offset : tensor.offset + tensor.length]
        else:
            assert refused(keeper, *asked).code in ("model_not_found", "invalid_value")
    assert refused(keeper, described.spec.fingerprint, FILE, 0, 8).code == "model_not_found"  # a header is no tensor


def test_a_slice_stays_true_when_its_folder_is_removed_and_made_anew_with_holes(keeper, copy_of):
    directory = copy_of("single")
    described = LocalLibrary().describe(str(directory))
    tensor = slice_ranges(described, 2, 3)[0]
    whole = (directory / tensor.file).read_bytes()
    keeper.lend_slice(order_of(described, 2, 3, directory))
    shutil.rmtree(directory)
    directory.mkdir()
    with (directory / tensor.file).open("wb") as file:
        file.truncate(len(whole))
    got = keeper.read(described.spec.fingerprint, tensor.file, tensor.offset, tensor.length)
    assert got.data == whole[tensor.offset : tensor.offset + tensor.length]


def lends(keeper, described, first, end):
    """Whether every tensor of these layers can be had."""
    try:
        for tensor in slice_ranges(described, first, end):
            keeper.read(described.spec.fingerprint, tensor.file, tensor.offset, tensor.length)
    except RefusalError as why:
        assert why.refusal.code in ("model_not_found", "invalid_value")
        return False
    return True


@pytest.mark.parametrize("change", [overwrite, overwrite_unseen, shorten])
@pytest.mark.parametrize("late", [False, True])
def test_a_slice_whose_file_is_rewritten_in_place_is_not_lent(keeper, copy_of, monkeypatch, change, late):
    """Whoever fetches it would keep it as the described model's for good."""
    directory = copy_of("single")
    described = LocalLibrary().describe(str(directory))
    keeper.lend_slice(order_of(described, 2, 3, directory))
    tensor = slice_ranges(described, 2, 3)[0]
    if late:
        change_while_reading(monkeypatch, directory / tensor.file, change)
    else:
        change(directory / tensor.file)
    asked = (described.spec.fingerprint, tensor.file, tensor.offset, tensor.length)
    assert refused(keeper, *asked).code == "bad_model"


class Lenders:
    """A RangeSource over keepers, one after the other, as the store lane asks them."""

    name = "lenders"

    def __init__(self, fingerprint, *keepers):
        self.fingerprint, self.keepers = fingerprint, keepers

    def read(self, file, offset, length):
        for keeper in self.keepers:
            try:
                yield bytes(keeper.read(self.fingerprint, file, offset, length).data)
                return
            except RefusalError:
                continue
        raise SourceUnfit("nobody has it")


def cached(root, described, source, first=0, end=5):
    """The ranges of these layers in a cache of its own, and the order that they are lent by."""
    cache = RangeCache(CacheRoom(root=root), RetryPolicy(tries=1))
    tensors = slice_ranges(described, first, end)
    with closing(cache):
        key = described.spec.fingerprint
        folder = cache.ensure(key, described.files, tensors, [source], lambda done, total: None, lambda: False)
    return order_of(described, first, end, folder)


def test_a_cache_never_keeps_bytes_of_a_file_that_was_rewritten(keeper, copy_of, saved, tmp_path):
    directory = copy_of("sharded")
    described = LocalLibrary().describe(str(directory))
    print_, good = described.spec.fingerprint, FileLender()
    keeper.lend_slice(order_of(described, 0, 5, directory))
    for path in directory.glob("*.safetensors"):
        overwrite_unseen(path)
    with pytest.raises(RefusalError) as caught:
        cached(tmp_path / "cache", described, Lenders(print_, keeper))
    assert caught.value.refusal.code == "source_unreachable"
    good.lend_slice(order_of(described, 0, 5, saved / "sharded"))
    folder = Path(directory_of(cached(tmp_path / "cache", described, Lenders(print_, keeper, good)).sources))
    for tensor in described.tensors:
        true = (saved / "sharded" / tensor.file).read_bytes()[tensor.offset :][: tensor.length]
        assert (folder / tensor.file).read_bytes()[tensor.offset :][: tensor.length] == true
    good.close()


def test_what_is_lent_from_a_cache_is_confirmed_by_its_checksums(keeper, saved, tmp_path, monkeypatch):
    """The files of a cache grow while they are lent, so that no time of writing tells anything."""
    monkeypatch.setattr(range_fetch, "CHUNK_BYTES", 1000)
    described = LocalLibrary().describe(str(saved / "single"))
    source = FileLender()
    source.lend_slice(order_of(described, 0, 5, saved / "single"))
    order = cached(tmp_path / "cache", described, Lenders(described.spec.fingerprint, source), 1, 2)
    keeper.lend_slice(order)
    cached(tmp_path / "cache", described, Lenders(described.spec.fingerprint, source), 2, 3)
    assert lends(keeper, described, 1, 2) and not lends(keeper, described, 2, 3)
    tensor = max(order.tensors, key=lambda tensor: tensor.length)
    path = Path(directory_of(order.sources)) / tensor.file
    raw = bytearray(path.read_bytes())
    raw[tensor.offset + tensor.length // 2] ^= 1
    path.write_bytes(raw)
    keeper.lend_slice(order)
    asked = (described.spec.fingerprint, tensor.file)
    assert refused(keeper, *asked, tensor.offset, tensor.length).code == "bad_model"
    assert keeper.read(*asked, tensor.offset, 10).data == raw[tensor.offset : tensor.offset + 10]
    source.close()


def test_what_was_loaded_before_stays_lent_while_its_files_are_the_same(keeper, copy_of):
    """Else nobody could fetch from here the layers that a new plan takes away from here."""
    directory = copy_of("sharded")
    described = LocalLibrary().describe(str(directory))
    opened = n_open()
    keeper.lend_slice(order_of(described, 0, 4, directory))
    keeper.lend_slice(order_of(described, 0, 1, directory))
    assert lends(keeper, described, 0, 4) and not lends(keeper, described, 4, 5)
    again = directory.with_name("again")
    shutil.copytree(directory, again)
    keeper.lend_slice(order_of(described, 0, 1, again))
    assert lends(keeper, described, 0, 4), "from the files of the former folder"
    shutil.rmtree(directory)
    keeper.lend_slice(order_of(described, 4, 5, again))
    assert lends(keeper, described, 0, 5)
    keeper.close()
    assert not lends(keeper, described, 0, 1) and n_open() == opened


def test_another_model_takes_the_place_of_the_one_before(keeper, copy_of):
    one, other = copy_of("single"), copy_of("sharded_tied")
    first, second = (LocalLibrary().describe(str(directory)) for directory in (one, other))
    opened = n_open()
    for _ in range(3):
        keeper.lend_slice(order_of(first, 0, 1, one))
        assert lends(keeper, first, 0, 1)
        keeper.lend_slice(order_of(second, 0, 1, other))
        assert lends(keeper, second, 0, 1) and not lends(keeper, first, 0, 1)
    keeper.close()
    assert n_open() == opened


def test_a_slice_whose_folder_went_away_is_a_fault_and_leaves_nothing_open(keeper, copy_of):
    directory = copy_of("sharded")
    described = LocalLibrary().describe(str(directory))
    (directory / "model-00003-of-00003.safetensors").unlink()
    opened = n_open()
    with pytest.raises(FileNotFoundError):
        keeper.lend_slice(order_of(described, 0, 5, directory))
    assert n_open() == opened


def test_models_lent_are_bounded(keeper, copy_of):
    directory = copy_of("single")
    for number in range(MODELS_MAX + 3):
        keeper.lend(f"print{number}", WholeFiles.of(directory, ["config.json"]))
    assert refused(keeper, "print2", "config.json", 0, 1).code == "model_not_found"
    assert keeper.read("print3", "config.json", 0, 1).data == b"{"


def test_taking_back_waits_for_the_read_in_hand(keeper, copy_of, monkeypatch):
    """Else a descriptor that was given to another file meanwhile would be read."""
    directory = copy_of("single")
    described = LocalLibrary().describe(str(directory))
    keeper.lend_slice(order_of(described, 0, 1, directory))
    tensor = slice_ranges(described, 0, 1)[0]
    closing = threading.Thread(target=keeper.close)
    read = os.preadv

    def read_while_closing(*asked):
        closing.start()
        closing.join(0.2)
        assert closing.is_alive(), "closed under a read"
        return read(*asked)

    monkeypatch.setattr("os.preadv", read_while_closing)
    whole = (directory / tensor.file).read_bytes()[tensor.offset : tensor.offset + tensor.length]
    assert keeper.read(described.spec.fingerprint, tensor.file, tensor.offset, tensor.length).data == whole
    closing.join()
