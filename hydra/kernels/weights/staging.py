"""Where the bytes of a file arrive on their way into a tensor, and what happens to them between.

A CPU tensor of the stored dtype is read into directly. Any other on the host passes through a scratch buffer, so that
nothing is ever held twice. A CUDA tensor is reached through two pinned slabs per thread: while the device copies out
of one, the next chunk is read into the other. Knows no file: reading is a function that fills a buffer.
"""

from collections.abc import Callable
from typing import Protocol, TypeAlias

import attrs
import torch
from torch import Tensor

from hydra.kernels.tensors import TORCH_DTYPES, bytes_of
from hydra.protocol.model.encoding import PlainEncoding
from hydra.protocol.model.model_spec import TensorRange
from hydra.protocol.refusal import RefusalError, refuse

HOST_CHUNK_BYTES = 4 << 20  # of a file, read at once on the host; as large as the scratch buffer, which a cache holds
SLAB_BYTES = 8 << 20  # read at once for a device: what a copy costs to start is then little beside the copy

Fill: TypeAlias = Callable[[memoryview], None]


class CopyUnderWay(Protocol):
    """A copy under way."""

    def synchronize(self) -> None: ...


class Mover(Protocol):
    """A device's way of taking memory in, without the host waiting."""

    def slab(self, n_bytes: int) -> Tensor: ...

    def move(self, landed: Tensor, target: Tensor) -> tuple[CopyUnderWay, Tensor | None]:
        """Starts the copy; also a flag (bool, on the device) that says whether a finite value did not fit, or None."""
        ...


def chunk_bytes(target: Tensor) -> int:
    """How much of a file is read at once for this tensor."""
    return SLAB_BYTES if target.device.type == "cuda" else HOST_CHUNK_BYTES


def landing_dtype(source: TensorRange, target: Tensor) -> torch.dtype:
    """What the bytes of a range are taken for as they arrive: what is not plain, or is wanted as bytes, for those."""
    encoding = source.encoding
    if isinstance(encoding, PlainEncoding) and target.dtype != torch.uint8:
        return TORCH_DTYPES[encoding.dtype]
    return torch.uint8


def is_straight(source: TensorRange, target: Tensor) -> bool:
    return target.device.type == "cpu" and target.dtype == landing_dtype(source, target)


class Staging:
    """One thread's, for one load onto one device. Before `settle` the targets must be neither used nor freed."""

    def __init__(self) -> None:
        self._scratch: Tensor | None = None
        self._slabs: Slabs | None = None

    def take(self, source: TensorRange, target: Tensor, fill: Fill) -> None:
        """Fills `target`, a flat part of the tensor that `source` describes. Refuses what float16 cannot hold."""
        if is_straight(source, target):
            fill(bytes_of(target))
            return
        if self._slabs is None and (mover := mover_for(target.device)) is not None:
            self._slabs = Slabs(mover)
        if self._slabs is not None:
            self._slabs.take(source, target, fill)
        else:
            self._convert(source, target, fill)

    def settle(self) -> None:
        """Waits for what is still being copied. Refuses what float16 could not hold."""
        if self._slabs is not None:
            self._slabs.settle()

    def _convert(self, source: TensorRange, target: Tensor, fill: Fill) -> None:
        stored = landing_dtype(source, target)
        n_bytes = target.numel() * stored.itemsize
        if self._scratch is None:
            self._scratch = torch.empty(HOST_CHUNK_BYTES, dtype=torch.uint8)
        landed = self._scratch[:n_bytes].view(stored)
        fill(bytes_of(landed))
        target.copy_(landed)
        lost = overflowed(landed, target.cpu())
        if lost is not None and bool(lost):
            raise too_large(source)


@attrs.define(eq=False)
class _Slab:
    memory: Tensor
    content: memoryview  # the same bytes
    moved: CopyUnderWay | None = None


class Slabs:
    """Two buffers that take turns. A buffer is read into only after the device has let go of it."""

    def __init__(self, mover: Mover) -> None:
        self._mover = mover
        slabs = [mover.slab(SLAB_BYTES) for _ in range(2)]
        self._slabs = [_Slab(memory, bytes_of(memory)) for memory in slabs]
        self._lost: list[tuple[TensorRange, Tensor]] = []

    def take(self, source: TensorRange, target: Tensor, fill: Fill) -> None:
        slab = self._slabs[0]
        self._slabs.reverse()
        if slab.moved is not None:
            slab.moved.synchronize()
        stored = landing_dtype(source, target)
        n_bytes = target.numel() * stored.itemsize
        fill(slab.content[:n_bytes])
        landed = slab.memory[:n_bytes].view(stored)
        slab.moved, lost = self._mover.move(landed, target)
        if lost is not None:
            self._lost.append((source, lost))

    def settle(self) -> None:
        for slab in self._slabs:
            if slab.moved is not None:
                slab.moved.synchronize()
        if self._lost and bool(torch.stack([lost for _, lost in self._lost]).any()):
            raise too_large(next(source for source, lost in self._lost if bool(lost)))


class CudaMover:
    """Copies on a stream of its own, which from here on is the thread's, so that no chunk pays for a switch to and fro.

    Dtypes are changed on the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))  # the targets were made on that one
        torch.cuda.set_stream(stream)

    def slab(self, n_bytes: int) -> Tensor:
        return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)

    def move(self, landed: Tensor, target: Tensor) -> tuple[CopyUnderWay, Tensor | None]:
        lost = None
        if landed.dtype == target.dtype:
            target.copy_(landed, non_blocking=True)
        else:
            staged = landed.to(self._device, non_blocking=True)
            target.copy_(staged)
            lost = overflowed(staged, target)
        moved = torch.cuda.Event()  # type: ignore[no-untyped-call]
        moved.record()
        return moved, lost


def mover_for(device: torch.device) -> Mover | None:
    """None for devices that take memory in only while the host waits."""
    return CudaMover(device) if device.type == "cuda" else None


def overflowed(stored: Tensor, target: Tensor) -> Tensor | None:
    """A flag: a finite value became infinite. None where the target's dtype reaches as far as any stored one."""
    if target.dtype != torch.float16 or stored.dtype == torch.float16:
        return None
    return (torch.isinf(target) & torch.isfinite(stored)).any()


def too_large(source: TensorRange) -> RefusalError:
    return refuse("unsupported", f"{source.file}: {source.name} overflows float16; load it as float32")
