"""A micro-batch while it is being put together: rows in, columns out.

A row is introduced to the stages the first time it travels. Who travels, and with how many tokens, is the scheduler's
choice. Chunks of prompts stay the columns they are, behind the single tokens of the rows that decode.
"""

import attrs
import numpy as np

from hydra.actors.scheduling.row import Row
from hydra.protocol.batch import EMPTY, Batch, Int32Column, RowOpening, int32
from hydra.protocol.ids import RowId


@attrs.define
class MicroBatch:
    """A micro-batch while it is being put together."""

    rows: list[Row] = attrs.field(factory=list)
    seen: set[RowId] = attrs.field(factory=set)
    n_tokens: int = 0
    filled: list[int] = attrs.field(factory=list)  # see Flight
    _columns: list[tuple[int, int, int, int, int, int]] = attrs.field(factory=list)
    _tokens: list[int] = attrs.field(factory=list)  # of the rows that decode, which come first
    _chunks: list[Int32Column] = attrs.field(factory=list)
    _blocks: list[int] = attrs.field(factory=list)
    _opened: list[RowOpening] = attrs.field(factory=list)

    def add_token(self, row: Row, *, blocks: list[int]) -> None:
        """The last token of a row that decodes. Before any chunk."""
        assert not self._chunks, "tokens are in the order of the rows"
        self._tokens.append(row.last_id)
        self._add(row, 1, sample=True, blocks=blocks)

    def add_chunk(self, row: Row, chunk: Int32Column, *, sample: bool, blocks: list[int]) -> None:
        """A part of a row's history."""
        self._chunks.append(chunk)
        self._add(row, len(chunk), sample=sample, blocks=blocks)

    def _add(self, row: Row, length: int, *, sample: bool, blocks: list[int]) -> None:
        if not row.announced:
            row.announced = True
            self._opened.append(opening_of(row))
        self._columns.append((row.row, row.open.attempt, row.position, length, int(sample), len(blocks)))
        self._blocks.extend(blocks)
        self.rows.append(row)
        self.seen.add(row.row)
        self.n_tokens += length

    def batch(self, closed: list[RowId]) -> Batch:
        columns = zip(*self._columns, strict=True) if self._columns else [()] * 6
        row, attempt, position, length, sample, new_blocks = (int32(list(column)) for column in columns)
        return Batch(
            row=row,
            attempt=attempt,
            position=position,
            length=length,
            sample=sample,
            new_blocks=new_blocks,
            tokens=self._joined_tokens(),
            blocks=int32(self._blocks),
            closed=int32(closed),
            opened=tuple(self._opened),
        )

    def _joined_tokens(self) -> Int32Column:
        if not self._chunks:
            return int32(self._tokens)
        parts = [int32(self._tokens), *self._chunks] if self._tokens else self._chunks
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def opening_of(row: Row) -> RowOpening:
    """What the stages are told of a row, once. The history travels only where the parameters look at it."""
    return RowOpening(
        row=row.row,
        attempt=row.open.attempt,
        params=row.open.params,
        prompt_tokens=row.open.prompt_tokens,
        history_tokens=len(row.history),
        cached_tokens=row.cached,
        history=row.history if row.open.params.needs_history else EMPTY,
    )
