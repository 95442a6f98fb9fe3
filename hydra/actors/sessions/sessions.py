"""All generations of one frontend. Hands each its own words, and lets every one open again when the cluster changed.

A Tokens message carries the tokens of many sessions in columns, once per step; here it becomes one event each.
"""

import math

import attrs

from hydra.actors.client import GenerateRequest
from hydra.actors.core.facts import Joined, Left, Undelivered
from hydra.actors.core.machine import CancelTimer, Effect, Event, Received, Send, SetTimer, Tell, TimerFired
from hydra.actors.sessions.session import Begin, Fail, Orphaned, Session, Stop
from hydra.protocol.ids import SessionId
from hydra.protocol.messages.generations import Open, OpenRefused, Reopen, Tokens
from hydra.protocol.refusal import Refusal
from hydra.protocol.sampled_token import SampledToken

REFUSAL_EVERY_S = 1.0


@attrs.frozen
class StartGeneration:
    """Event: a new generation."""

    session: SessionId
    request: GenerateRequest


@attrs.frozen
class EndGeneration:
    """Event: its reader wants no more."""

    session: SessionId


@attrs.define
class Show:
    """Effect: what a session wants shown, or its failure."""

    session: SessionId
    shown: SampledToken | Fail


@attrs.define(eq=False)
class Sessions:
    """A table of Session machines."""

    max_replays: int
    replays: int = attrs.field(default=0, init=False)
    _sessions: dict[SessionId, Session] = attrs.field(factory=dict, init=False)
    _was_out: bool = attrs.field(default=False, init=False)
    _refused: int = attrs.field(default=0, init=False)  # at the door, since that was noted last
    _refusal_noted_s: float = attrs.field(default=-math.inf, init=False)

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        match event:
            case Received(message=Tokens() as tokens):
                return [effect for number, token in tokens.one_by_one() for effect in self._tell(number, token, now_s)]
            case Received(message=(OpenRefused() | Reopen()) as message):
                return self._tell(message.session, message, now_s)
            case Undelivered(message=Open() as opening, refusal=refusal):
                return self._tell(opening.session, _too_large(opening, refusal), now_s)
            case Undelivered():
                return []  # a Close is never that large
            case StartGeneration(session=session, request=request):
                self._sessions[session] = self._new(session, request)
                return self._tell(session, Begin(), now_s)
            case EndGeneration(session=session):
                return self._tell(session, Stop(), now_s)
            case TimerFired(key=(int(number), key)):
                return self._tell(SessionId(number), TimerFired(key), now_s)
            case Left():
                self._was_out = True
                return []
            case Joined():
                return self._joined(now_s)
            case _:
                raise AssertionError(f"sessions cannot be told {event!r}")

    def check(self) -> None:
        """Only what is under way is kept, each under its own number. Raises AssertionError."""
        for number, session in self._sessions.items():
            assert session.session == number, f"session {session.session} is kept under {number}"
            assert not session.done, f"session {number} is done, and kept"
            session.check()

    def __len__(self) -> int:
        return len(self._sessions)

    def _new(self, session: SessionId, request: GenerateRequest) -> Session:
        return Session(
            session=session,
            model_id=request.model_id,
            prompt=request.prompt,
            max_tokens=request.max_tokens,
            params=request.params,
            stop_ids=request.stop_ids,
            max_replays=self.max_replays,
            request=request.request,
            owner=request.owner,
            response_id=request.response_id,
        )

    def _joined(self, now_s: float) -> list[Effect]:
        """Back in. Whoever had a row has lost it: the coordinator is new, or it had given us up."""
        if not self._was_out:
            return []
        self._was_out = False
        return [effect for session in list(self._sessions) for effect in self._tell(session, Orphaned(), now_s)]

    def _tell(self, number: SessionId, event: object, now_s: float) -> list[Effect]:
        session = self._sessions.get(number)
        if session is None:
            return []  # ended already; its Close and this word crossed
        attempt, began = session.attempt, session.began
        effects = [_named(number, effect) for effect in session.handle(event, now_s)]
        self.replays += session.attempt - attempt
        if session.done and not began:
            effects = self._thinned(effects, now_s)
        if session.done:
            del self._sessions[number]
        return effects

    def _thinned(self, effects: list[Effect], now_s: float) -> list[Effect]:
        """Whoever is refused at the door comes in crowds: one a second is noted, and how many it stands for."""
        kept: list[Effect] = []
        for effect in effects:
            if not (isinstance(effect, Tell) and effect.fact.kind == "session_refused"):
                kept.append(effect)
                continue
            self._refused += 1
            if now_s >= self._refusal_noted_s + REFUSAL_EVERY_S:
                kept.append(Tell(effect.to, attrs.evolve(effect.fact, count=self._refused)))
                self._refused, self._refusal_noted_s = 0, now_s
        return kept


def _too_large(opening: Open, refusal: Refusal) -> OpenRefused:
    """It cannot be said to the Broker, so it is answered in its stead."""
    message = f"this request is too large for the cluster: {refusal.message}; send less at once"
    refused = attrs.evolve(refusal, message=message)
    return OpenRefused(session=opening.session, attempt=opening.attempt, refusal=refused)


def _named(number: SessionId, effect: Effect) -> Effect:
    """A session's own effects, with its number on them."""
    match effect:
        case SampledToken() | Fail():
            return Show(number, effect)
        case Send() | Tell():
            return effect
        case SetTimer(key=key, at_s=at_s):
            return SetTimer((number, key), at_s)
        case CancelTimer(key=key):
            return CancelTimer((number, key))
        case _:
            raise AssertionError(f"a session cannot ask for {effect!r}")
