"""A step in which every row adds one token, as columns: what is then asked of all rows at once.

Columns are made on the host, in two arrays, so that a step costs two copies to the device however many rows it has; and
they are of one shape for a number of rows, so that a captured step can be fed others. Knows tables and positions, no
layer.
"""

from collections.abc import Sequence

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hydra.kernels.attention.paged_attention import StepPlan, View, is_run
from hydra.kernels.attention.paged_rows import PagedRows
from hydra.kernels.model.rotary import Rotary, lengths
from hydra.kernels.tensors import to_device
from hydra.protocol.batch import Batch, OpenRow

TOKEN, POSITION, SLOT, REACH = range(4)  # the first fields; then one per view, and one per rotary that needs lengths
_PLAIN_FIELDS = 4


def is_decode(batch: Batch) -> bool:
    return 0 < batch.n_tokens == len(batch.row)


@attrs.frozen(eq=False)
class DecodeColumns:
    """On the host."""

    fields: npt.NDArray[np.int64]  # [fields, rows]
    table: npt.NDArray[np.int32]  # [rows, blocks of the longest]
    block_size: int

    @property
    def n_rows(self) -> int:
        return len(self.table)

    def padded(self, n_rows: int, spare_block: int) -> "DecodeColumns":
        """With rows to make up the number, each of one token, alone in a block that nobody owns."""
        n_more = n_rows - self.n_rows
        if not n_more:
            return self
        more = np.zeros((len(self.fields), n_more), np.int64)
        more[SLOT], more[REACH] = spare_block * self.block_size, 1
        blocks = np.full((n_more, self.table.shape[1]), spare_block, np.int32)
        fields, table = np.concatenate((self.fields, more), 1), np.concatenate((self.table, blocks))
        return DecodeColumns(fields, table, self.block_size)


def decode_columns(
    batch: Batch, rows: Sequence[OpenRow], block_size: int, views: Sequence[View], rotaries: Sequence[Rotary]
) -> DecodeColumns:
    """Raises IndexError when a row's block table does not reach its position."""
    position = batch.position.astype(np.int64)
    counts = (position // block_size + 1).tolist()
    table = np.zeros((len(rows), max(counts)), np.int32)
    for number, (row, count) in enumerate(zip(rows, counts, strict=True)):
        if count > len(row.blocks):
            raise IndexError(f"row {row.row} has {len(row.blocks)} blocks and needs {count}")
        blocks = row.blocks[:count]
        table[number, :count] = np.arange(blocks[0], blocks[0] + count) if is_run(blocks) else blocks
    last = table[np.arange(len(rows)), position // block_size].astype(np.int64)
    slot = last * block_size + position % block_size
    firsts = [np.maximum(0, position + 1 - view.window) if view.window else np.zeros_like(position) for view in views]
    grown = [lengths(rotary.spec, batch, rows) for rotary in rotaries if rotary.spec.depends_on_length]
    return DecodeColumns(
        np.stack([batch.tokens.astype(np.int64), position, slot, position + 1, *firsts, *grown]), table, block_size
    )


@attrs.frozen(eq=False)
class DecodeInputs:
    """The same on a device."""

    fields: Tensor  # [fields, rows] int64
    table: Tensor  # [rows, blocks] int32
    block_size: int

    @property
    def tokens(self) -> Tensor:
        return self.fields[TOKEN]

    @property
    def reach(self) -> Tensor:
        return self.fields[REACH]

    def plan(self, n_views: int) -> StepPlan:
        reach, firsts = self.fields[REACH], self.fields[_PLAIN_FIELDS : _PLAIN_FIELDS + n_views]
        paged = tuple(PagedRows(self.table, reach, first, self.block_size) for first in firsts)
        return StepPlan(self.fields[POSITION], self.fields[SLOT], paged=paged)

    def lengths(self, n_views: int) -> tuple[Tensor, ...]:
        """For the rotaries that depend on them, in their order."""
        return tuple(self.fields[_PLAIN_FIELDS + n_views :])


def on_device(columns: DecodeColumns, block_size: int, device: torch.device) -> DecodeInputs:
    return DecodeInputs(to_device(columns.fields, device), to_device(columns.table, device), block_size)


def empty_inputs(n_fields: int, n_rows: int, n_blocks: int, block_size: int, device: torch.device) -> DecodeInputs:
    fields = torch.zeros(n_fields, n_rows, dtype=torch.int64, device=device)
    return DecodeInputs(fields, torch.zeros(n_rows, n_blocks, dtype=torch.int32, device=device), block_size)


def n_fields(views: Sequence[View], rotaries: Sequence[Rotary]) -> int:
    return _PLAIN_FIELDS + len(views) + sum(rotary.spec.depends_on_length for rotary in rotaries)
