"""The reader by itself: what it checks before the first byte, how chunks land, and what it leaves behind."""

import gc
import os
import shutil
import weakref

import attrs
import numpy as np
import pytest
import torch

from hydra.kernels.step.runner import Runner
from hydra.kernels.weights import staging
from hydra.kernels.weights.reader import read_ranges
from hydra.kernels.weights.weight_memory import HUGE_BYTES, weight_memory
from hydra.protocol.model.encoding import BF16, F32
from hydra.protocol.model.model_spec import TensorRange
from hydra.protocol.model.source import Directory
from hydra.protocol.refusal import RefusalError
from tests.unit.kernels.bench import order, quiet

CPU = torch.device("cpu")
SIZES = (3000, 1, 4096, 777, 0)  # items


def never(bytes_done: int, bytes_total: int) -> None:
    raise AssertionError("a byte was read before everything was checked")


@attrs.frozen
class Stored:
    """Random float32 values in two files, and where they lie."""

    folder: object
    sources: tuple[TensorRange, ...]
    values: tuple[torch.Tensor, ...]

    def targets(self, dtype: torch.dtype = torch.float32) -> list[tuple[TensorRange, torch.Tensor]]:
        return [
            (source, torch.full(source.shape, -1.0, dtype=dtype)) for source in reversed(self.sources)
        ]  # in no order of the files


@pytest.fixture
def stored(tmp_path, untied):
    any_range = untied.tensors[0]
    rng = np.random.default_rng(3)
    sources, values = [], []
    for file in ("a.safetensors", "b.safetensors"):
        with (tmp_path / file).open("wb") as out:
            out.write(b"header!")
            for number, size in enumerate(SIZES):
                data = rng.standard_normal(size).astype(np.float32)
                sources.append(
                    attrs.evolve(
                        any_range,
                        name=f"{file[0]}{number}",
                        file=file,
                        offset=out.tell(),
                        length=data.nbytes,
                        encoding=F32,
                        shape=(size,),
                    )
                )
                out.write(data.tobytes())
                values.append(torch.from_numpy(data))
    return Stored(tmp_path, tuple(sources), tuple(values))


def check(stored: Stored, wanted: list[tuple[TensorRange, torch.Tensor]]) -> None:
    values = dict(zip([source.name for source in stored.sources], stored.values, strict=True))
    for source, target in wanted:
        assert torch.equal(target, values[source.name].to(target.dtype)), source.name


@pytest.mark.parametrize("chunk", [4, 1000, 1 << 20])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_item_lands_in_its_place(stored, monkeypatch, chunk, threads, dtype):
    monkeypatch.setattr(staging, "HOST_CHUNK_BYTES", chunk)
    wanted = stored.targets(dtype)
    assert read_ranges(stored.folder, wanted, quiet, threads) == sum(source.length for source in stored.sources)
    check(stored, wanted)


class Late:
    """A device that copies as late as it may: when it is waited for."""

    def __init__(self, waited: list[int]) -> None:
        self._waited = waited

    def slab(self, n_bytes: int) -> torch.Tensor:
        return torch.empty(n_bytes, dtype=torch.uint8)

    def move(self, landed, target):
        lost = torch.zeros((), dtype=torch.bool)
        return LateCopy(self._waited, landed, target, lost), lost


@attrs.define(eq=False)
class LateCopy:
    waited: list[int]
    landed: torch.Tensor
    target: torch.Tensor
    lost: torch.Tensor
    done: bool = False

    def synchronize(self) -> None:
        if not self.done:
            self.done = True
            self.target.copy_(self.landed)
            flag = staging.overflowed(self.landed, self.target)
            if flag is not None:
                self.lost.copy_(flag)
            self.waited.append(self.target.numel())


@pytest.mark.parametrize("chunk", [1000, 1 << 20])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_slab_is_read_into_only_when_the_device_has_let_go_of_it(stored, monkeypatch, chunk, threads):
    monkeypatch.setattr(staging, "HOST_CHUNK_BYTES", chunk)
    waited: list[int] = []
    monkeypatch.setattr(staging, "mover_for", lambda device: Late(waited))
    wanted = stored.targets(torch.bfloat16)
    read_ranges(stored.folder, wanted, quiet, threads)
    check(stored, wanted)
    assert sum(waited) == 2 * sum(SIZES), "every copy was waited for before the tensors were given out"


def test_one_slab_is_filled_while_the_other_is_being_copied(stored):
    """The overlap: when the second chunk is read, nobody has waited for the first."""
    waited: list[int] = []
    slabs, seen = staging.Slabs(Late(waited)), []
    source, target = stored.sources[0], torch.empty(3, 100)

    def fill(buffer: memoryview) -> None:
        seen.append(len(waited))
        buffer[:] = bytes(len(buffer))

    for row in target:
        slabs.take(source, row, fill)
    slabs.settle()
    assert seen == [0, 0, 1] and len(waited) == 3


@pytest.mark.parametrize("late", [False, True])
def test_what_float16_cannot_hold_is_refused_by_name(stored, monkeypatch, late):
    if late:
        monkeypatch.setattr(staging, "mover_for", lambda device: Late([]))
    large = stored.sources[2]
    with (stored.folder / large.file).open("r+b") as file:
        file.seek(large.offset + 400)
        file.write(np.float32(1e6).tobytes())
    with pytest.raises(RefusalError, match=r"a\.safetensors: a2 overflows float16") as refused:
        read_ranges(stored.folder, stored.targets(torch.float16), quiet)
    assert refused.value.refusal.code == "unsupported"
    read_ranges(stored.folder, stored.targets(torch.bfloat16), quiet)


def test_infinity_in_the_file_is_no_overflow(stored):
    odd = stored.sources[0]
    with (stored.folder / odd.file).open("r+b") as file:
        file.seek(odd.offset)
        file.write(np.float32("inf").tobytes())
    wanted = stored.targets(torch.float16)
    read_ranges(stored.folder, wanted, quiet)
    assert {source.name: target for source, target in wanted}["a0"][0] == torch.inf


@pytest.mark.parametrize(
    ("number", "changes", "words"),
    [
        (1, {"offset": -1}, r"a\.safetensors: a1 has 4 bytes of F32 at -1"),
        (1, {"length": 8}, r"a\.safetensors: a1 has 8 bytes"),
        (1, {"encoding": BF16}, r"a\.safetensors: a1 has 4 bytes of BF16"),
        (0, {"offset": 1 << 62}, r"a\.safetensors ends at byte \d+, within a0"),
        (3, {"offset": 7 + 4 * (sum(SIZES) - 776)}, r"a\.safetensors ends at byte \d+, within a3"),
        (1, {"offset": 7 + 4 * 2999}, r"a\.safetensors: (a0 overlaps a1|a1 overlaps a0)"),
        (0, {"file": "c.safetensors"}, r"c\.safetensors cannot be read for a0: No such file"),
        (0, {"file": "../a.safetensors"}, "not a file name"),
        (0, {"file": "folder"}, "folder cannot be read for a0: it is not a regular file"),
        (0, {"file": "pipe"}, "pipe cannot be read for a0: it is not a regular file"),
    ],
)
def test_ranges_are_checked_before_the_first_byte(stored, number, changes, words):
    (stored.folder / "folder").mkdir()
    os.mkfifo(stored.folder / "pipe")
    wanted = [
        (attrs.evolve(source, **changes) if source.name == f"a{number}" else source, target)
        for source, target in stored.targets()
    ]
    with pytest.raises(RefusalError, match=words) as refused:
        read_ranges(stored.folder, wanted, never)
    assert refused.value.refusal.code == "bad_model"


@pytest.mark.parametrize("threads", [1, 3])
def test_a_file_that_shrinks_while_it_is_read_is_refused(stored, monkeypatch, threads):
    monkeypatch.setattr(staging, "HOST_CHUNK_BYTES", 400)
    last = stored.sources[-2]

    def cut(bytes_done: int, bytes_total: int) -> None:
        os.truncate(stored.folder / last.file, last.offset)

    monkeypatch.setattr(staging.Staging, "take", slowed(staging.Staging.take, last, cut))
    with pytest.raises(RefusalError, match=r"b\.safetensors ends within b3: byte \d+ is missing"):
        read_ranges(stored.folder, stored.targets(), quiet, threads)


def slowed(take, last, cut):
    """Lets the file shrink just before its last tensor is read."""

    def taken(self, source, target, fill):
        if source.name == last.name:
            cut(0, 0)
        take(self, source, target, fill)

    return taken


def test_a_refusal_keeps_no_tensor_alive(stored):
    """Not even until the garbage collector comes by: what was half read may be most of the machine's memory."""

    def failing() -> list[weakref.ref[torch.Tensor]]:
        wanted = stored.targets()
        broken = [(attrs.evolve(s, offset=1 << 62) if s.name == "b3" else s, t) for s, t in wanted]
        with pytest.raises(RefusalError):
            read_ranges(stored.folder, broken, quiet)
        return [weakref.ref(target) for _, target in wanted]

    def failing_late() -> list[weakref.ref[torch.Tensor]]:
        wanted = stored.targets(torch.float16)
        with pytest.raises(RefusalError, match="overflows"):
            read_ranges(stored.folder, wanted, quiet)
        return [weakref.ref(target) for _, target in wanted]

    with (stored.folder / "b.safetensors").open("r+b") as file:
        file.seek(stored.sources[5].offset)
        file.write(np.float32(1e6).tobytes())
    gc.collect()
    gc.disable()
    try:
        for way in (failing, failing_late):
            assert [ref() for ref in way()] == [None] * 2 * len(SIZES), way.__name__
    finally:
        gc.enable()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_damaged_norm_is_refused_by_name_and_the_runner_holds_nothing(untied, tmp_path, value):
    folder = shutil.copytree(untied.path, tmp_path / "damaged")
    norm = next(source for source in untied.tensors if source.name == "model.norm.weight")
    with (folder / norm.file).open("r+b") as file:
        file.seek(norm.offset + norm.length - 4)
        file.write(np.float32(value).tobytes())
    runner = Runner("cpu")
    runner.load(order(untied, 0, 2), quiet)
    with pytest.raises(RefusalError, match=rf"{norm.file}: model\.norm\.weight holds NaN or infinity"):
        runner.load(order(untied, 2, 4, sources=(Directory(str(folder)),)), quiet)
    assert runner.held() == () and runner._used_bytes() == 0
    assert runner.load(order(untied, 2, 4), quiet).read_bytes == sum(t.length for t in untied.ranges(2, 4))


def test_whoever_listens_may_end_it(stored, monkeypatch):
    monkeypatch.setattr(staging, "HOST_CHUNK_BYTES", 40)

    class Enough(Exception):
        pass

    told = []

    def listen(bytes_done: int, bytes_total: int) -> None:
        told.append(bytes_done)
        if len(told) == 3:
            raise Enough

    with pytest.raises(Enough):
        read_ranges(stored.folder, stored.targets(), listen)
    assert len(told) == 3


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")  # noqa: PTH110
def test_fresh_memory_begins_on_a_huge_page_and_goes_back_at_once():
    before = resident_bytes()
    made = weight_memory((33, 1 << 20), torch.float32, CPU)
    assert made.shape == (33, 1 << 20) and made.is_contiguous() and made.dtype == torch.float32
    assert made.data_ptr() % HUGE_BYTES == 0
    part = made[3:5]
    part.fill_(1.0)
    assert resident_bytes() - before < 4 * HUGE_BYTES + (8 << 20), "what nobody touched costs nothing"
    made.fill_(1.0)
    assert resident_bytes() - before > 120 << 20
    del made
    assert float(part.sum()) == 2 << 20, "a view keeps it"
    del part
    assert resident_bytes() - before < 16 << 20


@pytest.mark.parametrize("shape", [(0,), (3,), (1 << 18,), (513, 1031), (1 << 20, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_memory_has_the_asked_shape(shape, dtype):
    made = weight_memory(shape, dtype, CPU)
    assert (made.shape, made.dtype, made.is_contiguous()) == (torch.Size(shape), dtype, True)
    made.fill_(2.0)
    assert bool((made == 2.0).all())
