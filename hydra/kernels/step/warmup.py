"""A prefill, a chunk of one and a decode step on scratch memory, so that a route's first real step is like the rest."""

from functools import partial

import torch

from hydra.kernels.model.slice import Slice, forward
from hydra.kernels.step.lanes import DeviceLane
from hydra.kernels.tensors import blob_of
from hydra.protocol.batch import Batch, OpenRow, int32
from hydra.protocol.ids import Attempt, RowId
from hydra.protocol.sampling import GREEDY

_PREFILL = 8


def warm_up(part: Slice, lane: DeviceLane, block_size: int) -> None:
    """Leaves nothing behind but warm caches and compiled kernels."""
    n_blocks = -(-(2 * _PREFILL + 1) // block_size)
    pool = part.pool(n_blocks, block_size)
    row = lone_row(n_blocks, 2 * _PREFILL + 1)
    for position, length in ((0, _PREFILL), (_PREFILL, _PREFILL), (2 * _PREFILL, 1)):
        batch = lone_batch(position, length)
        hidden = None if part.is_first else blob_of(torch.zeros(length, part.spec.hidden, dtype=part.dtype))
        lane.collect(lane.launch(hidden, partial(forward, part, pool, batch, (row,))))


def lone_row(n_blocks: int, prompt_tokens: int) -> OpenRow:
    """A row that has a pool's first blocks to itself."""
    return OpenRow(
        row=RowId(0),
        attempt=Attempt(0),
        params=GREEDY,
        blocks=list(range(n_blocks)),
        prompt_tokens=prompt_tokens,
        history_tokens=prompt_tokens,
    )


def lone_batch(position: int, length: int) -> Batch:
    """A step of that row alone, its last token sampled."""
    return Batch(
        row=int32([0]),
        attempt=int32([0]),
        position=int32([position]),
        length=int32([length]),
        sample=int32([1]),
        new_blocks=int32([0]),
        tokens=int32([0] * length),
    )
