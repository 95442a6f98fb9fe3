"""The fence at the door of the arithmetic: which step may run, which result may leave.

A pure, synchronous object. The compute thread of a worker and the simulator drive the same one, so what the simulator
proves is what runs. It owns the rows that are open on each route, checks the sequence of steps, and refuses whatever
belongs to another epoch. The stage machine moves the fence only by publishing one frozen Fence on the board.
"""

from collections.abc import Mapping
from typing import Literal

import attrs

from hydra.actors.stage.step_limits import StepLimits
from hydra.protocol.batch import Batch, GrowingIds, Int32Column, OpenRow, Run, Step
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import EPOCH_ZERO, Attempt, Epoch, RouteId, RowId, StepId

DropReason = Literal[
    "no route",
    "old epoch",
    "not open yet",
    "duplicate",
    "gap",
    "out of range",
    "unknown row",
    "wrong position",
    "no room",
]
# A step out of range is none of the Broker's: its own of that number is still to come, and goes on from here.
BREAKS_THE_ROUTE: frozenset[DropReason] = frozenset({"gap", "unknown row", "wrong position", "no room"})


@attrs.frozen(kw_only=True)
class Fence:
    """What one route may do on this stage. Closed: drop everything. Open: steps of exactly this epoch."""

    route: RouteId
    epoch: Epoch
    open: bool
    last: bool = False  # of the route's stages
    next_addr: Endpoint | None = None  # of an open one where its steps go
    credits: int = 0
    limits: StepLimits | None = None  # of what an open one lets through; None: what is behind it takes any step


@attrs.define
class FenceBoard:
    """Where the machine publishes and the thread reads. One reference is swapped at a time, which is atomic."""

    _fences: dict[RouteId, Fence] = attrs.field(factory=dict)

    def publish(self, fence: Fence) -> None:
        self._fences = {**self._fences, fence.route: fence}

    def remove(self, route: RouteId) -> None:
        self._fences = {key: fence for key, fence in self._fences.items() if key != route}

    def read(self, route: RouteId) -> Fence | None:
        return self._fences.get(route)

    def all(self) -> tuple[Fence, ...]:
        return tuple(self._fences.values())

    def snapshot(self) -> Mapping[RouteId, Fence]:
        """Never changed afterwards: as long as it is the same object, nothing has been published or removed."""
        return self._fences


@attrs.frozen
class Drop:
    """The step does not run. Reasons in BREAKS_THE_ROUTE mean that the epoch cannot go on."""

    reason: DropReason

    @property
    def breaks_the_route(self) -> bool:
        return self.reason in BREAKS_THE_ROUTE


@attrs.define
class _RouteState:
    epoch: Epoch = EPOCH_ZERO
    last_step: int = 0
    rows: dict[int, OpenRow] = attrs.field(factory=dict)


@attrs.define
class StageLine:
    """`accept` before a step runs, `may_send` before its result leaves. `dropped` counts refusals by reason."""

    board: FenceBoard
    dropped: dict[DropReason, int] = attrs.field(factory=dict)
    _routes: dict[RouteId, _RouteState] = attrs.field(factory=dict, init=False)

    def admits(self, route: RouteId, epoch: Epoch) -> DropReason | None:
        """The fence alone: why nothing of this epoch may pass, or None. Cheap enough to ask twice per step."""
        fence = self.board.read(route)
        if fence is None:
            return "no route"
        if epoch == fence.epoch:
            return None if fence.open else "not open yet"
        return "old epoch" if epoch < fence.epoch else "not open yet"

    def accept(self, step: Step) -> Run | Drop:
        """Checks fence and sequence, applies what the batch closes and opens, and lays the rows beside it.

        Also of a step that an earlier stage had no memory for: its rows go on as if it were computed, the same at all
        stages, until the Broker closes them.
        """
        refused = self.admits(step.route, step.epoch)
        if refused is not None:
            return self.drop(refused)
        state = self._routes.get(step.route)
        if state is None or state.epoch != step.epoch:
            state = self._routes[step.route] = _RouteState(epoch=step.epoch)  # a new epoch starts empty
        if step.step <= state.last_step:
            return self.drop("duplicate")
        if step.step != state.last_step + 1:
            return self.drop("gap")
        fence = self.board.read(step.route)
        limits = fence.limits if fence is not None else None
        if limits is not None and limits.fault(step):
            return self.drop("out of range")
        rows = self._rows_of(state, step.batch, limits)
        if isinstance(rows, Drop):
            return rows
        state.last_step = step.step
        return Run(
            route=step.route,
            epoch=step.epoch,
            step=step.step,
            batch=step.batch,
            rows=rows,
            hidden=step.hidden,
            out_of_memory=step.out_of_memory,
        )

    def may_send(self, run: Run) -> Fence | None:
        """The second look at the fence: the epoch may have ended while the step was computed. None: do not send."""
        refused = self.admits(run.route, run.epoch)
        if refused is not None:
            self.drop(refused)
            return None
        return self.board.read(run.route)

    def drop(self, reason: DropReason) -> Drop:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        return Drop(reason)

    @property
    def stale_dropped(self) -> int:
        """Refusals because of another epoch: the number that shows a fence at work."""
        return self.dropped.get("old epoch", 0) + self.dropped.get("no route", 0) + self.dropped.get("not open yet", 0)

    def accepted(self, route: RouteId, epoch: Epoch) -> StepId:
        """The last step of this epoch that was accepted; 0 before the first."""
        state = self._routes.get(route)
        return StepId(state.last_step if state and state.epoch == epoch else 0)

    def open_rows(self, route: RouteId, epoch: Epoch) -> int:
        """Rows open in this epoch."""
        state = self._routes.get(route)
        return len(state.rows) if state and state.epoch == epoch else 0

    def check(self) -> None:
        """No route is ahead of its fence, and every row is where its blocks allow. Raises AssertionError."""
        for route, state in self._routes.items():
            fence = self.board.read(route)
            assert fence is not None and state.epoch <= fence.epoch, f"route {route} is ahead of its fence"
            current = fence.epoch == state.epoch and fence.open
            for number, row in state.rows.items():
                assert row.row == number and row.position >= 0, f"row {row.row} is kept under {number}"
                assert len(set(row.blocks)) == len(row.blocks), f"row {number} has a block twice"
                if current and fence.limits is not None:
                    assert fence.limits.room(len(row.blocks), row.position), f"row {number} is beyond its blocks"

    def _rows_of(self, state: _RouteState, batch: Batch, limits: StepLimits | None) -> tuple[OpenRow, ...] | Drop:
        for closed in batch.closed.tolist():
            state.rows.pop(closed, None)
        for opening in batch.opened:
            state.rows[opening.row] = OpenRow(
                row=RowId(opening.row),
                attempt=Attempt(opening.attempt),
                params=opening.params,
                prompt_tokens=opening.prompt_tokens,
                history_tokens=opening.history_tokens,
                position=opening.cached_tokens,
                history=GrowingIds(opening.history),
            )
        rows: list[OpenRow] = []
        token_at = block_at = 0
        columns = (batch.row, batch.attempt, batch.position, batch.length, batch.new_blocks)
        for number, attempt, position, length, n_blocks in zip(*(column.tolist() for column in columns), strict=True):
            row = state.rows.get(number)
            if row is None or row.attempt != attempt:
                return self.drop("unknown row")
            if row.position != position:
                return self.drop("wrong position")
            row.blocks.extend(batch.blocks[block_at : block_at + n_blocks].tolist())
            if limits is not None and not limits.room(len(row.blocks), position + length):
                return self.drop("no room")
            if row.params is not None and row.params.needs_history:
                _extend_history(row, batch.tokens[token_at : token_at + length], position)
            row.position = position + length
            token_at += length
            block_at += n_blocks
            rows.append(row)
        return tuple(rows)


def _extend_history(row: OpenRow, tokens: Int32Column, position: int) -> None:
    """Ids the row does not know yet; a prefill repeats those its opening already carried."""
    known = len(row.history)
    row.history.extend(tokens[max(0, known - position) :])
