"""Reads exactly the byte ranges of a slice into their final place, and nothing else of the file.

Plain positional reads into the tensor's own memory, a few at a time; another dtype is converted piece by piece, so
the peak stays at one tensor above the slice. Raises RefusalError (bad_model) naming file and tensor. No pickle, no
torch.load: bytes have a described dtype and shape, and were checked against the file's header before.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import attrs
import torch
from torch import Tensor

from hydra.protocol.model_spec import TensorRange
from hydra.protocol.refusal import refuse

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
READ_BYTES = 8 << 20
READERS = 4


@attrs.define(eq=False)
class WeightReader:
    """Reads into place. `bytes_read` counts what came from the files."""

    directory: Path
    progress: Callable[[int, int], None]
    total: int
    bytes_read: int = 0
    _lock: Lock = attrs.field(factory=Lock, init=False)

    def read_all(self, jobs: Sequence[tuple[TensorRange, Tensor]]) -> None:
        """Each range into its target, a contiguous view of the final tensor on the same or another dtype or device."""
        files = {job.file: self._open(job.file) for job, _ in jobs}
        try:
            with ThreadPoolExecutor(READERS, thread_name_prefix="weights") as pool:
                for done in [pool.submit(self._read, files[job.file], job, target) for job, target in jobs]:
                    done.result()
        finally:
            for descriptor in files.values():
                os.close(descriptor)

    def _open(self, file: str) -> int:
        if Path(file).name != file:
            raise refuse("bad_model", f"{file!r} is not a plain file name")
        try:
            return os.open(self.directory / file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as why:
            raise refuse("bad_model", f"{file}: cannot be read: {why.strerror}") from why

    def _read(self, descriptor: int, job: TensorRange, target: Tensor) -> None:
        if tuple(target.shape) != job.shape:
            raise refuse("bad_model", f"{job.file}: {job.name} has shape {job.shape}, not {tuple(target.shape)}")
        stored = TORCH_DTYPES[job.dtype]
        in_place = target.dtype == stored and target.device.type == "cpu" and target.is_contiguous()
        landing = target if in_place else torch.empty(job.shape, dtype=stored)
        self._fill(descriptor, job, landing.view(-1).view(torch.uint8).numpy().data)
        if not in_place:
            target.copy_(landing)
        if job.name.endswith("norm.weight") and not bool(torch.isfinite(target).all()):
            raise refuse("bad_model", f"{job.file}: {job.name} holds values that are not finite")

    def _fill(self, descriptor: int, job: TensorRange, place: memoryview) -> None:
        if len(place) != job.length:
            raise refuse("bad_model", f"{job.file}: {job.name} is {job.length} bytes long, its shape {len(place)}")
        at = 0
        while at < job.length:
            got = os.preadv(descriptor, [place[at : at + READ_BYTES]], job.offset + at)
            if got == 0:
                raise refuse("bad_model", f"{job.file}: ends inside {job.name}")
            at += got
            with self._lock:
                self.bytes_read += got
                self.progress(self.bytes_read, self.total)
