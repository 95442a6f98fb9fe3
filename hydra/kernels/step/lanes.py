"""How a step gets onto a device and its result off it. Here the plain way, where launching does all the work.

A lane knows bytes, streams and waiting; what is computed between them it is handed as a function.
"""

from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from hydra.kernels.sampling.sampler import SampledTensors, settle
from hydra.kernels.tensors import blob_of, tensor_of
from hydra.protocol.batch import Outcome
from hydra.protocol.blob import Blob

Work: TypeAlias = Callable[[Tensor | None], Tensor | SampledTensors]


class DeviceLane(Protocol):
    """`launch` and `collect` in the same order, each from one thread."""

    def launch(self, hidden: Blob | None, work: Work) -> object: ...

    def collect(self, ticket: object) -> Outcome: ...


class HostLane:
    """CPU and MPS: the ticket is the outcome itself."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def launch(self, hidden: Blob | None, work: Work) -> object:
        return finished(work(None if hidden is None else tensor_of(hidden).to(self._device)))

    def collect(self, ticket: object) -> Outcome:
        assert isinstance(ticket, Outcome)
        return ticket


def finished(result: Tensor | SampledTensors) -> Outcome:
    """What was computed, read on the host."""
    if isinstance(result, Tensor):
        return Outcome(hidden=blob_of(result))
    return settle(result.map(Tensor.cpu))
