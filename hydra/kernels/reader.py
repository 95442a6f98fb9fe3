"""Byte ranges of files straight into tensors: in chunks, over a few threads, counted.

The reader promises that a tensor it filled holds exactly its range, or that it refused by file and tensor. When stored
and wanted dtypes (or devices) differ, each chunk passes through a small buffer, so nothing is ever held twice. It
knows no tensor's meaning and no file format.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Protocol

import attrs
import torch
from torch import Tensor

from hydra.kernels.tensors import TORCH_DTYPES, bytes_of
from hydra.protocol.model_spec import DTYPE_BYTES, TensorRange
from hydra.protocol.refusal import refuse

CHUNK_BYTES = 8 << 20
_THREADS = 4


class Progress(Protocol):
    def __call__(self, bytes_done: int, bytes_total: int) -> None: ...


@attrs.frozen(eq=False)
class _Chunk:
    source: TensorRange
    offset: int  # in the file
    target: Tensor  # flat, as many items as the chunk has


def read_ranges(
    folder: Path, wanted: Sequence[tuple[TensorRange, Tensor]], progress: Progress, threads: int = _THREADS
) -> int:
    """Fills each (contiguous) tensor from its range, and returns the bytes read. Refuses with bad_model."""
    files: dict[str, int] = {}
    total = sum(source.length for source, _ in wanted)
    done = 0
    try:
        for source, _ in wanted:
            if source.file not in files:
                files[source.file] = _open(folder, source)
        chunks = [chunk for source, target in wanted for chunk in _chunks(source, target)]
        with ThreadPoolExecutor(threads, thread_name_prefix="hydra-read") as pool:
            reads = [pool.submit(_read, files[chunk.source.file], chunk) for chunk in chunks]
            try:
                for read in as_completed(reads):
                    done += read.result()
                    progress(done, total)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        for file in files.values():
            os.close(file)
    return done


def _open(folder: Path, source: TensorRange) -> int:
    if Path(source.file).name != source.file:
        raise refuse(
            "bad_model", f"{source.file!r} of tensor {source.name} is not a file name: describe the model again"
        )
    try:
        return os.open(folder / source.file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise refuse(
            "bad_model", f"{folder / source.file} cannot be read for {source.name}: {error.strerror}"
        ) from error


def _chunks(source: TensorRange, target: Tensor) -> Iterator[_Chunk]:
    item_bytes = DTYPE_BYTES[source.dtype]
    if source.length != target.numel() * item_bytes or source.offset < 0:
        raise refuse(
            "bad_model",
            f"{source.file}: {source.name} has {source.length} bytes of {source.dtype} at {source.offset}, "
            f"but its shape {tuple(target.shape)} needs {target.numel() * item_bytes}",
        )
    flat, step = target.view(-1), CHUNK_BYTES // item_bytes
    for first in range(0, target.numel(), step):
        yield _Chunk(source, source.offset + first * item_bytes, flat[first : first + step])


@torch.inference_mode()
def _read(file: int, chunk: _Chunk) -> int:
    target, stored = chunk.target, TORCH_DTYPES[chunk.source.dtype]
    straight = target.dtype == stored and target.device.type == "cpu"
    landing = target if straight else torch.empty(target.shape, dtype=stored)
    buffer = bytes_of(landing)
    done = 0
    while done < len(buffer):
        got = os.preadv(file, [buffer[done:]], chunk.offset + done)
        if got == 0:
            raise refuse(
                "bad_model",
                f"{chunk.source.file} ends within {chunk.source.name}: byte {chunk.offset + done} is missing; "
                "the file was cut short, fetch it again",
            )
        done += got
    if not straight:
        target.copy_(landing)
        if target.dtype == torch.float16 and not bool(torch.isfinite(target).all()) and torch.isfinite(landing).all():
            raise refuse(
                "unsupported", f"{chunk.source.file}: {chunk.source.name} overflows float16; load it as float32"
            )
    return done
