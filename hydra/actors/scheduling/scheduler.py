"""One route at work: rows, micro-batches and their KV blocks, for one epoch. The Broker owns it; it sends nothing.

Continuous batching with several micro-batches in flight. Rows that decode travel in even cohorts, one per stage, so
that every stage always has one in hand; prompts are prefilled in chunks beside them. A decoding row is in at most one
micro-batch. Chunks of one prompt may follow each other through the stages without waiting: the lane keeps their order.

A row suspected of killing workers (`solitary`) is computed alone until it has shown that it does not. Where a model's
rotary positions depend on a row's length, long rows share no prefixes, and a row about to become long is preempted, so
that it is opened again as a long one (see LengthRule). After a step that found no memory on a device, steps are
smaller (see StepBound).
"""

from collections import Counter, deque

import attrs

from hydra.actors.scheduling.fair_queue import places_kept
from hydra.actors.scheduling.kv_ledger import KvLedger
from hydra.actors.scheduling.micro_batch import MicroBatch
from hydra.actors.scheduling.prefill_turns import PrefillTurns
from hydra.actors.scheduling.row import RequestKey, Row, RowKey
from hydra.actors.scheduling.row_faults import RowFault
from hydra.actors.scheduling.step_bound import StepBound
from hydra.actors.scheduling.step_time import StepTime
from hydra.protocol.batch import EMPTY, ROW_FINE, Batch, StepResult
from hydra.protocol.ids import Attempt, Epoch, RouteId, RowId, StepId
from hydra.protocol.model.decoder_spec import LengthRule
from hydra.protocol.settings.engine import SharePrefixes

COHORT_ROWS_MAX = 64  # decoding rows in one micro-batch; more only lengthens everybody's step
CHUNK_TOKENS_MIN = 64
BATCH_TOKENS_AUTO = 512


@attrs.frozen
class Flight:
    """A micro-batch that is under way."""

    step: StepId
    rows: tuple[Row, ...]
    tokens: int
    filled: tuple[int, ...]  # blocks of prompts, which others may come to share
    sent_s: float


@attrs.define(eq=False)
class RouteScheduler:
    """Everything the Broker knows of one (route, epoch)."""

    route: RouteId
    epoch: Epoch
    n_stages: int
    credits: int
    ledger: KvLedger
    max_batch_tokens: int  # 0: automatic
    length_rule: LengthRule | None = None
    share_prefixes: SharePrefixes = "all"
    rows: dict[RowId, Row] = attrs.field(factory=dict, init=False)
    flights: deque[Flight] = attrs.field(factory=deque, init=False)
    preempted: list[Row] = attrs.field(factory=list, init=False)
    failed: list[tuple[Row, RowFault]] = attrs.field(factory=list, init=False)  # gone, and what went wrong
    ended: list[Row] = attrs.field(factory=list, init=False)  # gone, for whatever reason: its place is another's
    last_token_s: float | None = attrs.field(default=None, init=False)
    _step: int = attrs.field(default=0, init=False)
    _prefill: PrefillTurns = attrs.field(factory=PrefillTurns, init=False)
    _pledged: int = attrs.field(default=0, init=False)  # blocks that the rows' histories have still to take
    _decode: deque[Row] = attrs.field(factory=deque, init=False)
    _lone: dict[RowId, Row] = attrs.field(factory=dict, init=False)  # rows that were or are solitary
    _closed: list[RowId] = attrs.field(factory=list, init=False)
    _bound: StepBound = attrs.field(factory=StepBound, init=False)
    _head_since_s: float = attrs.field(default=0.0, init=False)  # when the oldest flight became the oldest
    _step_time: StepTime = attrs.field(factory=StepTime, init=False)

    # ------------------------------------------------------------ rows come and go

    def has_room(self, tokens: int, *, to_spare: bool = False) -> bool:
        """Whether a history of so many tokens and its first answer find blocks beside those who were let in before.

        `to_spare`: and leave those alone that are kept for requests that have few rows.
        """
        kept = places_kept(self.ledger.blocks_total) if to_spare else 0
        return self.ledger.blocks_for(tokens + 1) <= self.ledger.blocks_free - self._pledged - kept

    def add(self, row: Row) -> None:
        likely = max(len(row.history), row.open.prompt_tokens + row.open.max_tokens)
        prefix = row.history if row.shares and not self._long(row) else EMPTY
        row.cached = self.ledger.open(row.row, prefix, likely, self._sharers(row))
        row.position = row.cached
        row.pledged = self.ledger.blocks_for(len(row.history) + 1) - len(self.ledger.table(row.row))
        self._pledged += row.pledged
        self.rows[row.row] = row
        self._prefill.add(row)
        if row.solitary:
            self._lone[row.row] = row

    def _sharers(self, row: Row) -> str:
        """Among whom it shares prefixes: those of its key, or everybody."""
        return row.open.owner if self.share_prefixes == "key" else ""

    def _long(self, row: Row) -> bool:
        """Whether its keys are of no use to others: from its opening on, until it is opened again."""
        rule = self.length_rule
        return rule is not None and rule.long(row.open.prompt_tokens, len(row.history))

    def _outgrows(self, row: Row) -> bool:
        """Whether its next token makes a short row long, and all of its keys wrong."""
        rule = self.length_rule
        return rule is not None and rule.reopens and len(row.history) <= rule.limit <= row.position

    def remove(self, row: Row) -> None:
        """The row is done, left or preempted: its blocks are free at once, the stages forget it with the next step."""
        if self.rows.pop(row.row, None) is None:
            return
        self.ended.append(row)
        self._pledged -= row.pledged
        self.ledger.close(row.row)
        self._lone.pop(row.row, None)
        if row.announced:
            self._closed.append(row.row)
        self._prefill.remove(row)
        if row in self._decode:
            self._decode.remove(row)

    def rows_in_flight(self) -> set[RowKey]:
        return {row.key for flight in self.flights for row in flight.rows if row.row in self.rows}

    def check(self) -> None:
        """Rows, flights and blocks agree with one another. Raises AssertionError."""
        steps = [flight.step for flight in self.flights]
        assert steps == list(range(self._step - len(steps) + 1, self._step + 1)), f"flights {steps} of {self._step}"
        assert len(steps) <= self.credits, f"{len(steps)} flights on {self.credits} credits"
        assert self.ledger.holders() == self.rows.keys(), "a row without blocks, or blocks without a row"
        flown = Counter(row.row for flight in self.flights for row in flight.rows)
        decoding, prefilling = (
            Counter(row.row for row in self._decode),
            Counter(row.row for row in self._prefill.rows()),
        )
        assert decoding.keys() | prefilling.keys() <= self.rows.keys(), "a row that is gone is to be computed"
        for number, row in self.rows.items():
            assert row.row == number and row.in_flight == flown[number], f"row {number} is in {flown[number]} flights"
            places = decoding[number] + prefilling[number] + row.waits_for_token
            assert places == 1, f"row {number} waits in {places} places"
            assert row.cached <= row.position and row.pledged >= 0, f"row {number} is before its own beginning"
        assert self._pledged == sum(row.pledged for row in self.rows.values()), "blocks are pledged to nobody"
        assert self._lone.keys() <= self.rows.keys(), "a suspect is remembered that is gone"
        assert not set(self._closed) & self.rows.keys(), "a row is closed that is open"
        for part in (self.ledger, self._prefill, self._bound):
            part.check()

    # ------------------------------------------------------------ what goes out

    def compose(self, now_s: float) -> tuple[StepId, Batch] | None:
        """The next micro-batch, or None when nothing can go now. Rows that lost their blocks are in `preempted`."""
        if len(self.flights) >= self._flights_max():
            return None
        parts = MicroBatch()
        alone = self._suspect()
        if alone is not None and any(row is not alone for flight in self.flights for row in flight.rows):
            return None  # the others come home first
        self._fill(parts, self._bound.at(now_s), alone)
        if not parts.rows and not (self._closed and not self.flights):
            return None
        self._step += 1
        batch = parts.batch(self._closed)
        self._closed = []
        flight = Flight(StepId(self._step), tuple(parts.rows), batch.n_tokens, tuple(parts.filled), now_s)
        for row in parts.rows:
            row.in_flight += 1
        self.flights.append(flight)
        return flight.step, batch

    @property
    def _decoding(self) -> int:
        """How many rows are through with their prompts."""
        return len(self.rows) - len(self._prefill)

    def _flights_max(self) -> int:
        crowded = self._decoding > self.n_stages * COHORT_ROWS_MAX
        return min(self.credits, self.n_stages + 1 if crowded or self._prefill else self.n_stages)

    def _cohort_size(self) -> int:
        return max(1, min(COHORT_ROWS_MAX, -(-self._decoding // self.n_stages)))

    def _suspect(self) -> Row | None:
        suspects = [row for row in self._lone.values() if row.solitary]
        return min(suspects, key=lambda row: row.arrival, default=None)

    def _fill(self, parts: MicroBatch, bound: int | None, only: Row | None) -> None:
        """A cohort, and prompts beside it. Under a bound they take half of it each."""
        cohort = 1 if only is not None else self._cohort_size()
        budget = self.max_batch_tokens or BATCH_TOKENS_AUTO
        if bound is None:
            self._add_decode(parts, cohort, only=only)
            self._add_prefill(parts, budget, only=only)
            return
        self._add_decode(parts, min(cohort, bound // 2 if self._prefill else bound), only=only)
        self._add_prefill(parts, min(budget, bound), only=only)
        if not parts.rows:  # of a bound of one there is no half, and a prompt may have to wait for blocks
            self._add_decode(parts, 1, only=only)

    def _add_decode(self, parts: MicroBatch, most: int, *, only: Row | None) -> None:
        for row in list(self._decode):
            if len(parts.rows) >= most:
                break
            if row.row not in self.rows or (only is not None and row is not only):
                continue
            if self._outgrows(row):
                self.remove(row)
                self.preempted.append(row)
                continue
            blocks = self._blocks(row, row.position + 1, parts)
            if blocks is None:
                continue
            self._decode.remove(row)
            parts.add_token(row, blocks=blocks)
            row.position += 1
            row.waits_for_token = True

    def _add_prefill(self, parts: MicroBatch, most: int, *, only: Row | None) -> None:
        budget = most - parts.n_tokens
        short: set[RequestKey] = set()  # of blocks: its other rows wait behind the one that needs them first
        for row in self._prefill.rows():
            if row.row not in self.rows or row.request in short or (only is not None and row is not only):
                continue
            if budget <= 0:
                break
            left = len(row.history) - row.position
            share = left if self.max_batch_tokens else max(CHUNK_TOKENS_MIN, -(-left // (2 * self.n_stages)))
            length = min(budget, left, share)
            blocks = self._blocks(row, row.position + length, parts)
            if blocks is None:
                short.add(row.request)
                continue
            last = row.position + length == len(row.history)
            chunk = row.history[row.position : row.position + length]
            parts.add_chunk(row, chunk, sample=last, blocks=blocks)
            parts.filled += self.ledger.blocks_of(row.row, row.position, length)
            row.position += length
            budget -= length
            self._prefill.served(row, length)
            if last:
                self._prefill.remove(row)
                if not self._long(row):
                    self.ledger.name_prompt(row.row, row.history, self._sharers(row))
                row.waits_for_token = True

    def _blocks(self, row: Row, tokens: int, parts: MicroBatch) -> list[int] | None:
        """New blocks for `tokens` tokens; takes them from another row when there are none. None: the row must wait."""
        while (blocks := self.ledger.grow(row.row, tokens)) is None:
            victim = self._victim(row, parts)
            if victim is None:
                return None
            self.remove(victim)
            self.preempted.append(victim)
        taken = min(row.pledged, len(blocks))
        row.pledged -= taken
        self._pledged -= taken
        first = () if row.announced else self.ledger.table(row.row)[: row.cached // self.ledger.block_size]
        return [*first, *blocks]

    def _victim(self, row: Row, parts: MicroBatch) -> Row | None:
        """Who gives its blocks up for this row: a younger one of the request that holds the most rows, if not fewer
        than this row's own. So the oldest row always goes on, and a request of many rows pays for its own growth.

        A row that runs alone takes them from anybody: the older ones stand still until it is through.
        """
        held = Counter(other.request for other in self.rows.values())
        others = [
            other
            for other in self.rows.values()
            if other is not row
            and other.row not in parts.seen
            and (other.announced or other.cached)  # it holds blocks
            and (row.solitary or (other.arrival > row.arrival and held[other.request] >= held[row.request]))
        ]
        return max(others, key=lambda other: (held[other.request], other.arrival), default=None)

    # ------------------------------------------------------------ what comes back

    def take(self, result: StepResult, now_s: float) -> dict[int, Row] | None:
        """Settles the oldest flight: the rows that got a token, each by the place of its token among the results. None
        when the result is not the one that must come next: the epoch is broken.

        A stage that lies is a fault of the world, not a bug of ours: the sessions open again and lose nothing. Rows
        that went wrong are gone, and in `failed`.
        """
        if not self.flights or self.flights[0].step != result.step:
            return None
        flight = self.flights.popleft()
        self._head_since_s = now_s
        for flown in flight.rows:
            flown.in_flight -= 1
        if result.out_of_memory:
            return self._starve(flight, now_s) if flight.rows else None
        self._step_time.measure(now_s - flight.sent_s, flight.tokens, len(flight.rows))
        due = self._due(result)
        tokens, faults, positions = (column.tolist() for column in (result.token, result.fault, result.position))
        if any(row.position != positions[index] for index, row in due.items()):
            return None
        sampled: dict[int, Row] = {}
        for index, row in due.items():
            if faults[index] != ROW_FINE:
                self._break(row)
            else:
                self._add_token(row, tokens[index])
                sampled[index] = row
        if sampled:
            self.last_token_s = now_s
        return sampled

    def _due(self, result: StepResult) -> dict[int, Row]:
        """The rows that wait for it, by their first place in it; others closed or were preempted."""
        due: dict[int, Row] = {}
        seen: set[RowId] = set()
        for index, (number, attempt) in enumerate(zip(result.row.tolist(), result.attempt.tolist(), strict=True)):
            row = self.rows.get(RowId(number))
            waits = row is not None and row.open.attempt == Attempt(attempt) and row.waits_for_token
            if row is not None and waits and row.row not in seen:
                seen.add(row.row)
                due[index] = row
        return due

    def _add_token(self, row: Row, token: int) -> None:
        row.waits_for_token = False
        row.last_id = token
        row.generated += 1
        row.generated_here += 1
        if token in row.open.stop_ids:
            row.finish = "stop"
        elif row.generated >= row.open.max_tokens:
            row.finish = "length"
        if row.finish is not None:
            self.remove(row)
        else:
            self._decode.append(row)

    def _break(self, row: Row) -> None:
        """Whatever its blocks hold may be no numbers either: nobody shares them any more."""
        self.ledger.unname(self.ledger.table(row.row))
        self._fail(row, "not finite")

    def _starve(self, flight: Flight, now_s: float) -> dict[int, Row]:
        """Some stage computed nothing of it: what it should have filled is worthless, and what was filled since by its
        rows or upon shared blocks may be. Nobody comes to share that any more, also what rows that have left meanwhile
        left behind by name; and whoever began with some of it is computed again.
        """
        self._bound.fail(flight.tokens, now_s)
        worthless = set(flight.filled)
        for later in self.flights if worthless else ():
            if any(row in flight.rows or row.cached for row in later.rows):
                worthless.update(later.filled)
        self.ledger.unname(worthless)
        for row in list(self.rows.values()):
            if row in flight.rows:
                self._fail(row, "no memory alone" if flight.tokens == 1 else "no memory")
            elif not worthless.isdisjoint(self.ledger.table(row.row)[: row.cached // self.ledger.block_size]):
                self._fail(row, "no memory")
        return {}

    def _fail(self, row: Row, fault: RowFault) -> None:
        self.remove(row)
        self.failed.append((row, fault))

    # ------------------------------------------------------------ time

    def overdue_s(self, lease_s: float, unmeasured_s: float) -> float | None:
        """When the oldest flight should be back at the latest; None when nothing is under way.

        8 times the predicted time, at least `lease_s`; before anything was measured, `unmeasured_s`.
        """
        if not self.flights:
            return None
        head = self.flights[0]
        since_s = max(head.sent_s, self._head_since_s)  # a slow predecessor is not its fault
        predicted_s = self._step_time.predicted_s(head.tokens)
        return since_s + (unmeasured_s if predicted_s is None else max(lease_s, 8.0 * predicted_s))
