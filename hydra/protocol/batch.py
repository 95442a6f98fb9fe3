"""A micro-batch: what the stages of a route are asked to compute, in int32 columns.

The Broker composes it once and it travels through the stages whole. Row columns have one entry per row; `tokens` and
`blocks` are the rows' runs laid end to end. A row is opened once, in full; afterwards it gets deltas only (new tokens,
new KV blocks). The columns of Batch, StepResult and Logprobs are tables: all that the wire must know of one is its line
here (see `columns`). Nothing here knows frames, sockets or tensors: `codec_data` turns a batch into bytes, `kernels`
into tensors.

What is made anew in every step of every stage is not frozen, because that costs three times as much; nobody writes to
it all the same.
"""

from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from hydra.protocol.blob import Blob
from hydra.protocol.columns import FLOAT32, LINE, ColumnTable
from hydra.protocol.ids import Attempt, Epoch, RouteId, RowId, StepId
from hydra.protocol.sampling import SamplingParams

Int32Column: TypeAlias = npt.NDArray[np.int32]

ROWS_MAX = 4096  # per micro-batch; a header that says more is a lie
TOKENS_MAX = 1 << 20


def int32(values: object) -> Int32Column:
    """Any sequence of integers as a contiguous column."""
    return np.ascontiguousarray(values, dtype=np.int32)


EMPTY: Int32Column = int32([])
EMPTY.setflags(write=False)


def token_ids(values: object) -> Int32Column:
    """Token ids, which several may hold at once: a column that is not written to. Not copied if it is one already."""
    column = int32(values)
    if column.flags.writeable:
        column = column.view()
        column.flags.writeable = False
    return column


def token_ids_field() -> Int32Column:
    """Of an attrs class that holds a prompt, or a prompt and the answer so far."""
    return attrs.field(eq=attrs.cmp_using(eq=np.array_equal), converter=token_ids)


class GrowingIds:
    """Token ids that others are put behind. The column that it begins with is shared until then, and never written to.

    `column` stays as it was when it was asked for.
    """

    __slots__ = ("_ids", "_size")

    def __init__(self, ids: Int32Column = EMPTY) -> None:
        self._ids, self._size = ids, len(ids)

    def __len__(self) -> int:
        return self._size

    @property
    def column(self) -> Int32Column:
        return self._ids[: self._size]

    def append(self, token: int) -> None:
        size = self._size
        if size == len(self._ids):
            self._make_room(size + 1)
        self._ids[size] = token
        self._size = size + 1

    def extend(self, ids: Int32Column) -> None:
        if not len(ids):
            return  # what it began with is read-only, and stays what it is
        size = self._size + len(ids)
        if size > len(self._ids):
            self._make_room(size)
        self._ids[self._size : size] = ids
        self._size = size

    def _make_room(self, size: int) -> None:
        """For half as many again, so that each id is moved a few times at most."""
        grown = np.empty(max(16, size + size // 2), np.int32)
        grown[: self._size] = self.column
        self._ids = grown


ROW_FINE, ROW_NOT_FINITE = 0, 1  # what a sampled row's `fault` says: its token counts, or its logits were no numbers


def no_faults(token: Int32Column) -> Int32Column:
    """The fault column of rows that are all fine."""
    return np.zeros(len(token), np.int32)


def column(default: Any = EMPTY, **line: Any) -> Any:
    """The field of a column; `line` as in Column."""
    return attrs.field(eq=attrs.cmp_using(eq=np.array_equal), default=default, metadata={LINE: line})


_FINE = attrs.Factory(lambda self: no_faults(self.token), takes_self=True)


@attrs.frozen(kw_only=True)
class RowOpening:
    """A row's first sentence to every stage.

    `prompt_tokens` is the length of the client's prompt within the history: penalties and min_tokens count from there,
    also after a replay. `history_tokens` is the length of all that the row is opened with, prompt and answer so far;
    some rotary positions depend on it. `history` is empty unless the parameters need it (see
    SamplingParams.needs_history).
    """

    row: RowId
    attempt: Attempt
    params: SamplingParams
    prompt_tokens: int
    history_tokens: int = 0
    cached_tokens: int = 0  # of the history, already in shared KV blocks
    history: Int32Column = column()


@attrs.define
class Batch:
    """One step of one route. Row i computes `length[i]` tokens from `position[i]` on; `sample[i]` asks for the next.

    `blocks` are the KV blocks newly given to the rows, `new_blocks[i]` of them to row i. `closed` rows are forgotten
    before anything runs, so their blocks may appear again in this very batch: the data lane is first in, first out.
    """

    row: Int32Column = column(items_max=ROWS_MAX)
    attempt: Int32Column = column(per="row")
    position: Int32Column = column(per="row", below="pool's positions")
    length: Int32Column = column(per="row")
    sample: Int32Column = column(per="row")
    new_blocks: Int32Column = column(per="row")
    tokens: Int32Column = column(counts="length", each_some=True, items_max=TOKENS_MAX, below="vocabulary")
    blocks: Int32Column = column(counts="new_blocks", items_max=TOKENS_MAX, below="pool's blocks")
    closed: Int32Column = column(items_max=TOKENS_MAX)
    opened: tuple[RowOpening, ...] = attrs.field(default=(), kw_only=True)
    packed: tuple[tuple[int, ...], bytes] | None = attrs.field(
        default=None, eq=False, repr=False, kw_only=True
    )  # counts and columns, as they came off the wire

    @property
    def n_rows(self) -> int:
        return len(self.row)

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)


@attrs.define(kw_only=True)
class Step:
    """A batch on its way to one stage; `hidden` is absent on the way to the first.

    `hidden` has shape [n_tokens, hidden width] in the route's dtype.
    """

    route: RouteId
    epoch: Epoch
    step: StepId
    batch: Batch
    hidden: Blob | None = None
    out_of_memory: bool = False  # at an earlier stage: there is no hidden, and nothing to compute


@attrs.frozen
class Logprobs:
    """Log-probabilities of the sampled rows that asked for them, in the batch's order of sampled rows.

    `chosen[i]` is that of the chosen token (NaN where not asked); `top_ids[i]`, `top[i]` the best alternatives, best
    first, padded with -1 / NaN to the widest row. float32 and int32.
    """

    chosen: npt.NDArray[np.float32] = column(attrs.NOTHING, dtype=FLOAT32, low=None)
    top_ids: npt.NDArray[np.int32] = column(
        attrs.NOTHING, per="chosen", wide=True, low=None, below="vocabulary", no_name=-1
    )
    top: npt.NDArray[np.float32] = column(attrs.NOTHING, dtype=FLOAT32, per="chosen", wide=True, low=None)  # [n, k]

    def rows(self, index: npt.NDArray[np.intp]) -> "Logprobs":
        """Some of the rows."""
        return Logprobs(chosen=self.chosen[index], top_ids=self.top_ids[index], top=self.top[index])

    def of(self, index: int) -> tuple[float | None, tuple[tuple[int, float], ...]]:
        """One row's: the chosen token's (None where not asked), and the best alternatives with theirs."""
        chosen = float(self.chosen[index])
        pairs = zip(self.top_ids[index].tolist(), self.top[index].tolist(), strict=True)
        return None if chosen != chosen else chosen, tuple((token, value) for token, value in pairs if token >= 0)


@attrs.define
class StepResult:
    """What the last stage says to the Broker: the sampled rows of one step, and nothing of the logits.

    `out_of_memory`: some stage had not enough for this step; no row was computed, and none is listed.
    """

    route: RouteId = attrs.field(kw_only=True)
    epoch: Epoch = attrs.field(kw_only=True)
    step: StepId = attrs.field(kw_only=True)
    row: Int32Column = column(items_max=ROWS_MAX)
    attempt: Int32Column = column(per="row")
    position: Int32Column = column(per="row")  # of the sampled token itself: last computed position + 1
    token: Int32Column = column(per="row", below="vocabulary")  # 0 where the row has a fault
    fault: Int32Column = column(_FINE, per="row", high=ROW_NOT_FINITE)  # ROW_*
    logprobs: Logprobs | None = attrs.field(default=None, kw_only=True)
    out_of_memory: bool = attrs.field(default=False, kw_only=True)


@attrs.define
class OpenRow:
    """A row as a stage knows it between steps. StageLine writes it, the kernels read it.

    `blocks` is the row's KV block table so far, in order; `history_tokens` is how many ids the row was opened with,
    `prompt_tokens` how many of them are the client's. `history` (ids of prompt and answer so far) is kept only where
    the parameters need it.
    """

    row: RowId
    attempt: Attempt
    params: SamplingParams | None = None
    prompt_tokens: int = 0
    history_tokens: int = 0
    position: int = 0  # tokens whose KV is in the pool, or will be once the step in hand has run
    blocks: list[int] = attrs.field(factory=list)
    history: GrowingIds = attrs.field(factory=GrowingIds)


@attrs.define(kw_only=True)
class Run:
    """An accepted step, ready to compute: the batch with each row's state beside it (`rows[i]` belongs to row i)."""

    route: RouteId
    epoch: Epoch
    step: StepId
    batch: Batch
    rows: tuple[OpenRow, ...]
    hidden: Blob | None
    out_of_memory: bool = False  # at an earlier stage


@attrs.define(kw_only=True)
class Outcome:
    """What a stage made of a Run: hidden states for the next stage, or (last stage) one token per sampled row.

    A row whose logits are not finite has a `fault` in its place and no token; the others' tokens are right. A step that
    the device had not enough memory for comes to nothing else; `reason` is then what the allocator said.
    """

    hidden: Blob | None = None
    token: Int32Column = column()
    fault: Int32Column = column(_FINE)
    logprobs: Logprobs | None = None
    out_of_memory: bool = False
    reason: str = ""


BATCH_COLUMNS, RESULT_COLUMNS, LOGPROBS_COLUMNS = ColumnTable(Batch), ColumnTable(StepResult), ColumnTable(Logprobs)
