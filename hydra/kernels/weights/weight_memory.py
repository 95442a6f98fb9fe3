"""Memory that weights are read into: page by page from the system, and handed back to it at once.

Promises: the system is asked for huge pages before the first byte arrives, because a load into small ones spends most
of its time on page faults; and when the last tensor over the memory is gone, so is the memory. Knows nothing of what is
stored there.
"""

import contextlib
import math
import mmap

import torch
from torch import Tensor

HUGE_BYTES = 2 << 20  # a huge page on x86-64 and on arm64 with 4 KiB pages; elsewhere the advice has no effect
MAPPED_BYTES_MIN = 1 << 20


def weight_memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised, contiguous tensor of this shape. Raises MemoryError or torch.OutOfMemoryError."""
    n_bytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or n_bytes < MAPPED_BYTES_MIN or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    return _mapped(n_bytes).view(dtype).view(shape)


def _mapped(n_bytes: int) -> Tensor:
    """Bytes that begin on a huge page. An end of less than half of one stays in small pages, so that no more than
    half a huge page is ever wasted; address space that nobody touches costs nothing."""
    try:
        pages = mmap.mmap(-1, n_bytes + 2 * HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"the system gives no {n_bytes} bytes: {error}") from error
    whole = torch.frombuffer(pages, dtype=torch.uint8)
    start = -whole.data_ptr() % HUGE_BYTES
    n_huge = (n_bytes + HUGE_BYTES // 2) // HUGE_BYTES
    with contextlib.suppress(OSError):  # a kernel without huge pages: the memory is as good, only slower to fill
        pages.madvise(mmap.MADV_HUGEPAGE, start, n_huge * HUGE_BYTES)
    return whole[start : start + n_bytes]
