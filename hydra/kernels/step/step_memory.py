"""Running out of memory is an outcome of the step, or the refusal of a load, and not a fault of the process.

Told apart by the allocators' own errors, and by their words where torch has no class for them. Before the outcome
leaves here, everything that the step had allocated is free again. Knows no batch and no row.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from hydra.kernels.devices import give_back
from hydra.protocol.batch import Outcome
from hydra.protocol.refusal import refuse

_T = TypeVar("_T")

_WORDS = (
    "can't allocate memory",  # torch's CPU allocator
    "out of memory",  # CUDA's and MPS's, from where torch raises no OutOfMemoryError: pinned memory, loading a kernel
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_REASON_CHARS = 300


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def within_memory(device: torch.device, act: Callable[[], _T]) -> _T | Outcome:
    """What `act` returns, or the outcome that says that there was not enough memory for it."""
    try:
        return act()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error)[:_REASON_CHARS]
    give_back(device)  # not before the error is gone, whose traceback holds what the step had
    return Outcome(out_of_memory=True, reason=reason)


@contextmanager
def refused_without_memory(device: torch.device, what: str) -> Iterator[None]:
    """Loading and making a pool have no outcome to say it with: there it is the refusal does_not_fit."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error)[:_REASON_CHARS]
    else:
        return
    give_back(device)  # as above: the error is gone
    raise refuse("does_not_fit", f"{device} ran out of memory while {what}: {reason}. Use more workers or free memory.")
