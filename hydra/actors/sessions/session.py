"""One generation, from the first token to the last. A session never loses a token it has shown.

TRANSITIONS below is the diagram. It keeps the prompt and everything it emitted, so a broken route costs one prefill and
no words: every cause (a dead stage, preemption, a new coordinator) takes the one replay path, `Open(history, attempt +
1)`. It is the only writer of its history. A SampledToken is an event, as the Broker's columns say it, and the same one
is the effect: show it. It does not know sockets, tensors or text; stop strings and leaving clients reach it as Stop.
"""

from typing import Literal

import attrs
import numpy as np

from hydra.actors.core.machine import CancelTimer, Effect, Event, Send, SetTimer, Tell, TimerFired
from hydra.actors.core.names import BROKER, JOURNAL_NAME, SESSIONS
from hydra.actors.core.suspicion import DEATHS_MAX, SOLITARY_TOKENS
from hydra.actors.core.transitions import Transitions, cause_of, rows
from hydra.actors.sessions.token_flow import TokenFlow
from hydra.protocol.batch import GrowingIds, Int32Column, token_ids
from hydra.protocol.ids import Attempt, SessionId
from hydra.protocol.messages.generations import Close, Open, OpenRefused, Reopen
from hydra.protocol.messages.journal import REASON_MAX, JournalEntry, JournalKind
from hydra.protocol.refusal import Refusal
from hydra.protocol.sampled_token import SampledToken
from hydra.protocol.sampling import SamplingParams

UNANSWERED_S = 30.0  # an Open that vanished with its coordinator is sent again
ORPHANED_AT_ONCE = 2  # so often in a row it opens again without a pause: a coordinator was killed, and its successor
ORPHANED_MAX = 20
ORPHANED_PAUSE_S, ORPHANED_PAUSE_MAX_S = 0.5, 8.0
_INTERRUPTIONS = {
    "epoch": "its route went down",
    "preempted": "its place was needed",
    "coordinator": "its coordinator is gone",
    "gap": "a token was lost on the way",
}


@attrs.frozen
class Begin:
    """Event: the first sentence; asks for the first Open."""


@attrs.frozen
class Stop:
    """Event: a stop string was seen, or the reader left."""


@attrs.frozen
class Orphaned:
    """Event: the coordinator we were open at is gone; another one is there."""


@attrs.frozen
class Fail:
    """Effect: the honest end of a generation that cannot go on."""

    refusal: Refusal


TRANSITIONS = Transitions(
    "session",
    "opening",
    (
        *rows("opening", SampledToken, "running"),
        *rows("running", SampledToken, "opening"),  # a token that is not the next one: some were lost on the way
        *rows("opening running", SampledToken, "done"),
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
    prompt: Int32Column = attrs.field(converter=token_ids, eq=attrs.cmp_using(eq=np.array_equal))  # shared by n choices
    max_tokens: int
    params: SamplingParams
    stop_ids: tuple[int, ...]
    max_replays: int
    request: int = 0
    owner: str = ""
    response_id: str = ""
    attempt: Attempt = Attempt(0)
    emitted: GrowingIds = attrs.field(factory=GrowingIds, init=False)
    deaths: int = attrs.field(default=0, init=False)
    done: bool = attrs.field(default=False, init=False)
    _reopened_at: int = attrs.field(default=0, init=False)  # emitted tokens when the last replay began
    _replays: int = attrs.field(default=0, init=False)
    _orphaned_in_a_row: int = attrs.field(default=0, init=False)  # without a token between
    _heard: bool = attrs.field(default=False, init=False)  # of this attempt
    _flow: TokenFlow = attrs.field(factory=TokenFlow, init=False)

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
                self._flow.begin(now_s)
                return self._open(now_s)
            case SampledToken():
                return self._token(event, now_s)
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
            history=np.concatenate([self.prompt, self.emitted.column]) if len(self.emitted) else self.prompt,
            prompt_tokens=len(self.prompt),
            max_tokens=self.max_tokens,
            params=self.params,
            stop_ids=self.stop_ids,
            deaths=self.deaths,
            request=self.request,
            owner=self.owner,
        )
        opened: list[Effect] = [Send(BROKER, opening), SetTimer("unanswered", now_s + UNANSWERED_S)]
        if not self._flow.interrupted:
            return opened
        return [*opened, self._note("session_reopened", tokens=len(opening.history))]

    def _token(self, sampled: SampledToken, now_s: float) -> list[Effect]:
        if sampled.attempt != self.attempt or sampled.position < self.position:
            return []  # an echo
        if sampled.position > self.position:
            return self._replay(now_s, why="gap", death=False)  # a Tokens message was lost on the way
        self._heard = True
        self._orphaned_in_a_row = 0
        resumed = self._resumed(now_s)
        self.emitted.append(sampled.token)
        if self.deaths and len(self.emitted) - self._reopened_at >= SOLITARY_TOKENS:
            self.deaths = 0
        return [sampled, *resumed] if sampled.finish is None else self._end([sampled, *resumed])

    def _resumed(self, now_s: float) -> list[Effect]:
        pause_s = self._flow.token(now_s)
        if pause_s is None:
            return []
        replayed = self.position if self._reopened_at == len(self.emitted) and self.attempt else 0
        return [self._note("session_resumed", tokens=replayed, took_s=pause_s)]

    def _interrupted(self, why: str, now_s: float) -> list[Effect]:
        """Its route or its coordinator is gone. That others needed its place is told only if it takes long."""
        if why == "preempted":
            return []
        silent_s = self._flow.interrupt(now_s)
        return [
            self._note("session_interrupted", reason=_INTERRUPTIONS[why], tokens=len(self.emitted), took_s=silent_s)
        ]

    def _note(self, kind: JournalKind, *, reason: str = "", tokens: int = 0, took_s: float | None = None) -> Effect:
        entry = JournalEntry(
            kind=kind,
            actor=SESSIONS,
            model_id=self.model_id,
            session=self.session,
            response_id=self.response_id,
            reason=reason[:REASON_MAX],
            tokens=tokens,
            took_s=took_s,
        )
        return Tell(JOURNAL_NAME, entry)

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
        noted = self._interrupted("coordinator", now_s)
        self._reopened_at = len(self.emitted)
        self.attempt = Attempt(self.attempt + 1)
        self._heard = False
        pause_s = min(ORPHANED_PAUSE_S * 2 ** (waits - 1), ORPHANED_PAUSE_MAX_S) * (1 + self.session % 16 / 16)
        return [*noted, SetTimer("unanswered", now_s + pause_s)]

    def _replay(self, now_s: float, *, why: str, death: bool) -> list[Effect]:
        noted = self._interrupted(why, now_s)
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
            return [*noted, *self._end([close, Fail(Refusal(code="replay_limit", message=message))])]
        return [*noted, *self._open(now_s)]

    def _end(self, effects: list[Effect]) -> list[Effect]:
        self.done = True
        refusals = [effect.refusal for effect in effects if isinstance(effect, Fail)]
        refused = [self._note("session_refused", reason=refusal.message) for refusal in refusals]
        return [*effects, CancelTimer("unanswered"), *refused]

    @property
    def began(self) -> bool:
        """Whether its reader has seen something of it, or it waits to go on."""
        return bool(self.emitted) or self._flow.interrupted
