"""A micro-batch while it is being put together: rows in, columns out.

A row is introduced to the stages the first time it travels. Who travels, and with how many tokens, is the Engine's
choice.
"""

from collections.abc import Sequence

import attrs

from hydra.actors.scheduling.row import Row
from hydra.protocol.batch import Batch, RowOpening, int32
from hydra.protocol.ids import RowId


@attrs.define
class MicroBatch:
    """A micro-batch while it is being put together."""

    rows: list[Row] = attrs.field(factory=list)
    seen: set[RowId] = attrs.field(factory=set)
    n_tokens: int = 0
    filled: list[int] = attrs.field(factory=list)  # see Flight
    _columns: list[tuple[int, int, int, int, int, int]] = attrs.field(factory=list)
    _tokens: list[int] = attrs.field(factory=list)
    _blocks: list[int] = attrs.field(factory=list)
    _opened: list[RowOpening] = attrs.field(factory=list)

    def add(self, row: Row, tokens: Sequence[int], *, sample: bool, blocks: list[int]) -> None:
        if not row.announced:
            row.announced = True
            self._opened.append(opening_of(row))
        self._columns.append((row.row, row.open.attempt, row.position, len(tokens), int(sample), len(blocks)))
        self._tokens.extend(tokens)
        self._blocks.extend(blocks)
        self.rows.append(row)
        self.seen.add(row.row)
        self.n_tokens += len(tokens)

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
            tokens=int32(self._tokens),
            blocks=int32(self._blocks),
            closed=int32(closed),
            opened=tuple(self._opened),
        )


def opening_of(row: Row) -> RowOpening:
    """What the stages are told of a row, once. The history travels only where the parameters look at it."""
    history = int32(row.history) if row.open.params.needs_history else int32([])
    return RowOpening(
        row=row.row,
        attempt=row.open.attempt,
        params=row.open.params,
        prompt_tokens=row.open.prompt_tokens,
        history_tokens=len(row.history),
        cached_tokens=row.cached,
        history=history,
    )
