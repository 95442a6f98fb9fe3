"""CUDA: copies in, arithmetic and copies out on streams of their own, so that two steps can overlap.

`launch` enqueues and returns; `collect` sleeps on the step's last event. Host buffers are pinned and come from
torch's caching allocator, one per step in flight: an outcome's blob is such a buffer, alive as long as the blob.
A ticket keeps every tensor of its step until it is collected, so no stream can see memory that was given away.
"""

import attrs
import torch
from torch import Tensor

from hydra.kernels.sampling.sampler import SampledTensors
from hydra.kernels.step.lanes import Work, finished
from hydra.kernels.tensors import tensor_of
from hydra.protocol.batch import Outcome
from hydra.protocol.blob import Blob


@attrs.frozen(eq=False)
class CudaTicket:
    """A step under way: `result` is on the host once `done` has happened; `alive` is what it still needs."""

    result: Tensor | SampledTensors
    done: torch.cuda.Event
    alive: tuple[object, ...]


class CudaLane:
    """One device's three streams."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._copy_in, self._compute, self._copy_out = (_stream() for _ in range(3))

    def launch(self, hidden: Blob | None, work: Work) -> object:
        with torch.cuda.device(self._device):
            staged, entering = self._bring(hidden)
            with torch.cuda.stream(self._compute):
                outcome = work(entering)
            self._copy_out.wait_stream(self._compute)
            with torch.cuda.stream(self._copy_out):
                result = _fetch(outcome) if isinstance(outcome, Tensor) else outcome.map(_fetch)
                done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                done.record(self._copy_out)
        return CudaTicket(result, done, (staged, entering, outcome))

    def collect(self, ticket: object) -> Outcome:
        assert isinstance(ticket, CudaTicket)
        ticket.done.synchronize()
        return finished(ticket.result)

    def _bring(self, hidden: Blob | None) -> tuple[Tensor | None, Tensor | None]:
        """The pinned copy of what was received, and its copy on the device once the compute stream gets there."""
        if hidden is None:
            return None, None
        staged = tensor_of(hidden).pin_memory()
        with torch.cuda.stream(self._copy_in):
            entering = staged.to(self._device, non_blocking=True)
        self._compute.wait_stream(self._copy_in)
        return staged, entering


def _fetch(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]
