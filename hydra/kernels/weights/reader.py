"""Byte ranges of files into tensors: checked, then in chunks over a few threads, counted.

The reader promises that the tensors it filled hold exactly their ranges, or that it refused by file and tensor; that
no range was read before all of them were checked; and that a refusal keeps none of the tensors alive. It knows no
tensor's meaning and no file format.
"""

import os
import stat
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue

import attrs
import torch
from torch import Tensor

from hydra.kernels.weights import staging
from hydra.kernels.weights.staging import Staging
from hydra.protocol.model.model_spec import TensorRange
from hydra.protocol.progress import Progress
from hydra.protocol.refusal import refuse

READ_THREADS = 4  # enough to keep a disk and two cores busy; each holds a buffer or two


@attrs.frozen(eq=False)
class _Chunk:
    source: TensorRange
    offset: int  # in the file
    target: Tensor  # flat, as many items as the chunk has


@attrs.frozen(eq=False)
class _Job:
    """What the threads of one load share. Both ends of a deque and of a queue are safe to use from any thread."""

    files: Mapping[str, int]  # open descriptors
    todo: deque[_Chunk]
    chunks_read: "SimpleQueue[int | None]"  # bytes of a chunk, or a thread's end

    def take(self) -> _Chunk | None:
        try:
            return self.todo.popleft()
        except IndexError:
            return None


def read_ranges(
    folder: Path, wanted: Sequence[tuple[TensorRange, Tensor]], progress: Progress, threads: int = READ_THREADS
) -> int:
    """Fills each (contiguous) tensor from its range, and returns the bytes read. Refuses: bad_model, unsupported."""
    for source, target in wanted:
        _check_length(source, target)
    with ExitStack() as opened:
        files = _open_files(folder, [source for source, _ in wanted], opened)
        in_file_order = sorted(wanted, key=lambda pair: (pair[0].file, pair[0].offset))
        chunks = deque(chunk for source, target in in_file_order for chunk in _chunks(source, target))
        total = sum(source.length for source, _ in wanted)
        return _read_all(_Job(files, chunks, SimpleQueue()), progress, total, max(1, min(threads, len(chunks))))


def _check_length(source: TensorRange, target: Tensor) -> None:
    needed = source.encoding.n_bytes(tuple(target.shape))
    if source.length != needed or source.offset < 0:
        raise refuse(
            "bad_model",
            f"{source.file}: {source.name} has {source.length} bytes of {source.encoding.name} at "
            f"{source.offset}, but its shape {tuple(target.shape)} needs {needed}",
        )


def _open_files(folder: Path, sources: Sequence[TensorRange], opened: ExitStack) -> dict[str, int]:
    """Descriptors by name, once every range lies inside its file and outside every other range."""
    files: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for source in sources:
        if source.file not in files:
            files[source.file], sizes[source.file] = _open(folder, source)
            opened.callback(os.close, files[source.file])
        if source.offset + source.length > sizes[source.file]:
            raise refuse(
                "bad_model",
                f"{source.file} ends at byte {sizes[source.file]}, within {source.name}, which needs bytes "
                f"{source.offset} to {source.offset + source.length}; the file was cut short, fetch it again",
            )
    for one, other in pairwise(sorted(sources, key=lambda source: (source.file, source.offset, source.length))):
        if one.file == other.file and other.offset < one.offset + one.length:
            raise refuse("bad_model", f"{one.file}: {other.name} overlaps {one.name}; describe the model again")
    return files


def _open(folder: Path, source: TensorRange) -> tuple[int, int]:
    """A descriptor and the file's size. Never waits: a pipe under that name is refused, not read."""
    if Path(source.file).name != source.file:
        raise refuse(
            "bad_model", f"{source.file!r} of tensor {source.name} is not a file name: describe the model again"
        )
    path = folder / source.file
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise refuse("bad_model", f"{path} cannot be read for {source.name}: {error.strerror}") from error
    identity = os.fstat(file)
    if not stat.S_ISREG(identity.st_mode):
        os.close(file)
        raise refuse("bad_model", f"{path} cannot be read for {source.name}: it is not a regular file")
    return file, identity.st_size


def _chunks(source: TensorRange, target: Tensor) -> Iterator[_Chunk]:
    item_bytes = source.encoding.n_bytes((1,))
    flat, step = target.view(-1), staging.chunk_bytes(target) // item_bytes
    for first in range(0, target.numel(), step):
        yield _Chunk(source, source.offset + first * item_bytes, flat[first : first + step])


def _read_all(job: _Job, progress: Progress, total: int, threads: int) -> int:
    """Progress is told on the caller's own thread."""
    done = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="hydra-read") as pool:
        reads = [pool.submit(_serve, job) for _ in range(threads)]
        try:
            running = threads
            while running:
                n_bytes = job.chunks_read.get()
                if n_bytes is None:
                    running -= 1
                    continue
                done += n_bytes
                progress(done, total)
        except BaseException:
            job.todo.clear()
            raise
    _raise_first(reads)
    return done


def _raise_first(reads: "list[Future[None]]") -> None:
    """Raises what a thread raised, and forgets the futures: an error that one of them holds, and whose traceback holds
    it, would keep the tensors alive until the garbage collector comes by."""
    try:
        while reads:
            reads.pop(0).result()
    finally:
        reads.clear()


@torch.inference_mode()
def _serve(job: _Job) -> None:
    """One thread: chunk after chunk until none is left, or until one fails, which ends the others too."""
    place = Staging()
    try:
        try:
            while (chunk := job.take()) is not None:
                place.take(chunk.source, chunk.target, partial(_fill, job.files[chunk.source.file], chunk))
                job.chunks_read.put(chunk.source.encoding.n_bytes(tuple(chunk.target.shape)))
        finally:
            place.settle()
    except BaseException:
        job.todo.clear()
        raise
    finally:
        job.chunks_read.put(None)


def _fill(file: int, chunk: _Chunk, buffer: memoryview) -> None:
    done = 0
    while done < len(buffer):
        try:
            got = os.preadv(file, [buffer[done:]], chunk.offset + done)
        except OSError as error:
            raise refuse(
                "bad_model", f"{chunk.source.file} cannot be read for {chunk.source.name}: {error.strerror}"
            ) from error
        if got == 0:
            raise refuse(
                "bad_model",
                f"{chunk.source.file} ends within {chunk.source.name}: byte {chunk.offset + done} is missing; "
                "the file was cut short, fetch it again",
            )
        done += got
