"""One generation, from the first token to the last. A session never loses a token it has shown.

TRANSITIONS below is the diagram. It keeps the prompt and everything it emitted, so a broken route costs one prefill and
no words: every cause (a dead stage, preemption, a new coordinator) takes the one replay path, `Open(history, attempt +
1)`. It is the only writer of its history. It does not know sockets, tensors or text; stop strings and leaving clients
reach it as Stop.
"""

from typing import Literal

import attrs
import numpy as np

from hydra.actors.core.machine import CancelTimer, Effect, Event, Send, SetTimer, TimerFired
from hydra.actors.core.names import BROKER
from hydra.actors.core.suspicion import DEATHS_MAX, SOLITARY_TOKENS
from hydra.actors.core.transitions import Transitions, cause_of, rows
from hydra.protocol.batch import Int32Column, int32
from hydra.protocol.ids import Attempt, SessionId
from hydra.protocol.messages.generations import (
    FINISH_LENGTH,
    FINISH_NONE,
    FINISH_STOP,
    Close,
    Open,
    OpenRefused,
    Reopen,
)
from hydra.protocol.refusal import Refusal
from hydra.protocol.sampling import SamplingParams

UNANSWERED_S = 30.0  # an Open that vanished with its coordinator is sent again
ORPHANED_AT_ONCE = 2  # so often in a row it opens again without a pause: a coordinator was killed, and its successor
ORPHANED_MAX = 20
ORPHANED_PAUSE_S, ORPHANED_PAUSE_MAX_S = 0.5, 8.0


@attrs.define(kw_only=True)
class Drawn:
    """Event: one token of this session, as the Broker told it."""

    attempt: Attempt
    position: int
    token: int
    finish: int
    cached: int = 0
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@attrs.frozen
class Begin:
    """Event: the first sentence; asks for the first Open."""


@attrs.frozen
class Stop:
    """Event: a stop string was seen, or the reader left."""


@attrs.frozen
class Orphaned:
    """Event: the coordinator we were open at is gone; another one is there."""


@attrs.define(kw_only=True)
class Emit:
    """Effect: show this token."""

    token: int
    finish: Literal["stop", "length"] | None
    cached: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


@attrs.frozen
class Fail:
    """Effect: the honest end of a generation that cannot go on."""

    refusal: Refusal


TRANSITIONS = Transitions(
    "session",
    "opening",
    (
        *rows("opening", Drawn, "running"),
        *rows("running", Drawn, "opening"),  # a token that is not the next one: some were lost on the way
        *rows("opening running", Drawn, "done"),
        *rows("running", Reopen, "opening"),
        *rows("running", Orphaned, "opening"),
        *rows("opening running", Reopen, "done"),
        *rows("opening", Orphaned, "done"),
        *rows("opening running", OpenRefused, "done"),
        *rows("opening running", Stop, "done"),
    ),
)


@attrs.define
class Session:
    """Remembers one generation."""

    session: SessionId
    model_id: str
    prompt: Int32Column = attrs.field(converter=int32, eq=attrs.cmp_using(eq=np.array_equal))  # shared by n choices
    max_tokens: int
    params: SamplingParams
    stop_ids: tuple[int, ...]
    max_replays: int
    request: int = 0
    owner: str = ""
    attempt: Attempt = Attempt(0)
    emitted: list[int] = attrs.field(factory=list, init=False)
    deaths: int = attrs.field(default=0, init=False)
    done: bool = attrs.field(default=False, init=False)
    _reopened_at: int = attrs.field(default=0, init=False)  # emitted tokens when the last replay began
    _replays: int = attrs.field(default=0, init=False)
    _orphaned_in_a_row: int = attrs.field(default=0, init=False)  # without a token between
    _heard: bool = attrs.field(default=False, init=False)  # of this attempt

    @property
    def state(self) -> Literal["opening", "running", "done"]:
        """As TRANSITIONS has it."""
        return "done" if self.done else "running" if self._heard else "opening"

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        if self.done:
            return []  # words of a former life
        before = self.state
        effects = self._hear(event, now_s)
        if before != (after := self.state):
            TRANSITIONS.step(before, cause_of(event), after)
        return effects

    def check(self) -> None:
        """Counts that agree with one another. Raises AssertionError."""
        assert 0 <= self._reopened_at <= len(self.emitted), "the last replay began beyond what was shown"
        assert 0 <= self._replays <= self.attempt, "more replays than attempts"
        assert self.done or self.deaths <= DEATHS_MAX, "it goes on after too many deaths"
        assert self.deaths <= self._replays, "deaths that were not replayed"
        assert self._orphaned_in_a_row <= ORPHANED_MAX + 1, "it is tried again for ever"
        assert not self._heard or self.emitted, "it was heard, and shows nothing"
        assert len(self.emitted) <= self.max_tokens, "it shows more than was asked for"

    def _hear(self, event: Event, now_s: float) -> list[Effect]:
        match event:
            case Begin():
                return self._open(now_s)
            case Drawn():
                return self._drawn(event, now_s)
            case Reopen(attempt=attempt) if attempt == self.attempt:
                return self._replay(now_s, why=event.why, death=event.death)
            case Orphaned():
                return self._orphaned(now_s)
            case OpenRefused(attempt=attempt, refusal=refusal) if attempt == self.attempt:
                return self._end([Fail(refusal)])
            case Stop():
                return self._end([Send(BROKER, Close(session=self.session, attempt=self.attempt))])
            case TimerFired(key="unanswered"):
                return [] if self._heard else self._open(now_s)
            case _:
                return []  # an answer to an earlier attempt

    @property
    def position(self) -> int:
        """Where the next token goes."""
        return len(self.prompt) + len(self.emitted)

    def _open(self, now_s: float) -> list[Effect]:
        self._heard = False
        opening = Open(
            session=self.session,
            attempt=self.attempt,
            model_id=self.model_id,
            history=np.concatenate([self.prompt, int32(self.emitted)]),
            prompt_tokens=len(self.prompt),
            max_tokens=self.max_tokens,
            params=self.params,
            stop_ids=self.stop_ids,
            deaths=self.deaths,
            request=self.request,
            owner=self.owner,
        )
        return [Send(BROKER, opening), SetTimer("unanswered", now_s + UNANSWERED_S)]

    def _drawn(self, drawn: Drawn, now_s: float) -> list[Effect]:
        if drawn.attempt != self.attempt or drawn.position < self.position:
            return []  # an echo
        if drawn.position > self.position:
            return self._replay(now_s, why="gap", death=False)  # a Tokens message was lost on the way
        self._heard = True
        self._orphaned_in_a_row = 0
        self.emitted.append(drawn.token)
        if self.deaths and len(self.emitted) - self._reopened_at >= SOLITARY_TOKENS:
            self.deaths = 0
        finish: Literal["stop", "length"] | None = None
        if drawn.finish != FINISH_NONE:
            finish = "stop" if drawn.finish == FINISH_STOP else "length"
            assert drawn.finish in (FINISH_STOP, FINISH_LENGTH)
        emit = Emit(token=drawn.token, finish=finish, cached=drawn.cached, logprob=drawn.logprob, top=drawn.top)
        return self._end([emit]) if finish else [emit]

    def _orphaned(self, now_s: float) -> list[Effect]:
        """The first times it opens again at once. It may be this very session that costs its frontend the membership,
        so from then on it waits, longer each time, and at last it ends. Those of one frontend do not wait alike.
        """
        self._orphaned_in_a_row += 1
        waits = self._orphaned_in_a_row - ORPHANED_AT_ONCE
        if waits <= 0:
            return self._replay(now_s, why="coordinator", death=False)
        if self._orphaned_in_a_row > ORPHANED_MAX:
            message = f"this request lost its coordinator {ORPHANED_MAX} times without a token; it is not tried again"
            return self._end([Fail(Refusal(code="replay_limit", message=message))])
        self._reopened_at = len(self.emitted)
        self.attempt = Attempt(self.attempt + 1)
        self._heard = False
        pause_s = min(ORPHANED_PAUSE_S * 2 ** (waits - 1), ORPHANED_PAUSE_MAX_S) * (1 + self.session % 16 / 16)
        return [SetTimer("unanswered", now_s + pause_s)]

    def _replay(self, now_s: float, *, why: str, death: bool) -> list[Effect]:
        self._reopened_at = len(self.emitted)
        self.attempt = Attempt(self.attempt + 1)
        if death:
            self.deaths += 1
            self._replays += 1
        if self.deaths > DEATHS_MAX or self._replays > self.max_replays:
            message = (
                f"this request was being computed at {self.deaths} losses of a worker ({self._replays} replays; "
                f"the last one because of: {why}); it is not tried again"
            )
            close = Send(BROKER, Close(session=self.session, attempt=self.attempt))
            return self._end([close, Fail(Refusal(code="replay_limit", message=message))])
        return self._open(now_s)

    def _end(self, effects: list[Effect]) -> list[Effect]:
        self.done = True
        return [*effects, CancelTimer("unanswered")]
