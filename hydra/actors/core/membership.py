"""Everybody but the coordinator: greets, beats, and greets again when it is not known any more.

TRANSITIONS below is the diagram. The member tells its siblings (the stage, the sessions) when it is in and when it is
out; what that means is theirs. It does not know what its process is for: the greeting and the beat are made by its
Identity.
"""

from typing import Literal

import attrs

from hydra.actors.core.facts import Joined, LaneBroken, Left
from hydra.actors.core.identity import Identity
from hydra.actors.core.machine import Effect, Event, Received, Send, SetTimer, Tell, TimerFired
from hydra.actors.core.names import REGISTRY
from hydra.actors.core.transitions import Transitions, cause_of, rows
from hydra.protocol.ids import ActorName, Generation
from hydra.protocol.messages.membership import (
    Beacon,
    Expelled,
    Goodbye,
    HeartbeatSeen,
    HelloRefused,
    SayHello,
    Welcome,
)
from hydra.protocol.messages.plans import ReachReport
from hydra.protocol.refusal import Refusal

GREET_AGAIN_S = 1.0  # an unanswered greeting is repeated; the first one often meets a coordinator that is not up yet


@attrs.frozen
class TurnedAway:
    """Effect: the coordinator will not have us. The process decides whether waiting helps."""

    refusal: Refusal


@attrs.frozen
class Reached:
    """Effect: the coordinator told whether plans may have this node; `fault` is empty when they may."""

    fault: str


@attrs.frozen
class Greet:
    """Event: the process is ready to greet."""


@attrs.frozen
class Leave:
    """Event: the process is about to end in good order."""

    why: str


TRANSITIONS = Transitions(
    "membership",
    "greeting",
    (
        *rows("greeting", Welcome, "inside"),
        *rows("inside", Expelled, "greeting"),
        *rows("inside", SayHello, "greeting"),
        *rows("inside", Beacon, "greeting"),
        *rows("inside", LaneBroken, "greeting"),
        *rows("inside", Leave, "gone"),
    ),
)


@attrs.define
class Member:
    """Keeps one process's membership."""

    identity: Identity
    siblings: tuple[ActorName, ...]
    term: int = 0
    generation: Generation | None = None
    _heartbeat_s: float = 0.5
    _gone: bool = attrs.field(default=False, init=False)

    @property
    def state(self) -> Literal["greeting", "inside", "gone"]:
        """As TRANSITIONS has it."""
        return "gone" if self._gone else "greeting" if self.generation is None else "inside"

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        before = self.state
        effects = [] if self._gone else self._hear(event, now_s)  # a late beat would be asked to greet
        TRANSITIONS.step(before, cause_of(event), self.state)
        return effects

    def check(self) -> None:
        """What each state has. Raises AssertionError."""
        assert not self._gone or self.generation is None, "it said goodbye, and has a generation"
        assert self.generation is None or self.term > 0, "it is inside without a term"
        assert len(set(self.siblings)) == len(self.siblings), "a sibling is told twice"

    def _hear(self, event: Event, now_s: float) -> list[Effect]:
        match event:
            case Greet():
                return self._greet(now_s)
            case TimerFired(key="greet"):
                return self._greet(now_s) if self.generation is None else []
            case TimerFired(key="beat"):
                return self._beat(now_s)
            case Received(message=Welcome() as welcome):
                return self._enter(welcome, now_s)
            case Received(message=HelloRefused(refusal=refusal)):
                wait_s = refusal.retry_after_s or GREET_AGAIN_S
                return [TurnedAway(refusal), SetTimer("greet", now_s + wait_s)]
            case Received(message=SayHello(term=term, generation=generation)) if generation == self.generation:
                return self._leave("new term", now_s) if term > self.term else self._leave("expelled", now_s)
            case Received(message=Beacon(term=term)) if self.generation is not None and term != self.term:
                return self._leave("new term", now_s)
            case Received(message=Expelled(generation=generation)) if generation == self.generation:
                return self._leave("expelled", now_s)
            case Received(message=ReachReport(generation=generation, fault=fault)) if generation == self.generation:
                return [Reached(fault)]
            case Received(message=HeartbeatSeen()):
                return []  # its number in the count was all that it had to say
            case LaneBroken() if self.generation is not None:
                return self._leave("expelled", now_s)
            case Leave(why=why) if self.generation is not None:
                farewell = Goodbye(generation=self.generation, why=why)
                self.generation, self._gone = None, True
                return [Send(REGISTRY, farewell)]
            case _:
                return []  # a beacon of our own term, or a word for a former life

    def _greet(self, now_s: float) -> list[Effect]:
        return [Send(REGISTRY, self.identity.hello(self.term)), SetTimer("greet", now_s + GREET_AGAIN_S)]

    def _enter(self, welcome: Welcome, now_s: float) -> list[Effect]:
        left: list[Effect] = []
        if self.generation is not None:  # two greetings crossed: the later generation is the one that counts
            left = [Tell(sibling, Left(why="expelled")) for sibling in self.siblings]
        self.generation = welcome.generation
        self.term = max(self.term, welcome.term)
        self._heartbeat_s = welcome.heartbeat_s
        joined: list[Effect] = [Tell(sibling, Joined(welcome=welcome)) for sibling in self.siblings]
        return [*left, *joined, *self._beat(now_s)]

    def _beat(self, now_s: float) -> list[Effect]:
        if self.generation is None:
            return []
        return [Send(REGISTRY, self.identity.heartbeat(self.generation)), SetTimer("beat", now_s + self._heartbeat_s)]

    def _leave(self, why: str, now_s: float) -> list[Effect]:
        was_inside = self.generation is not None
        self.generation = None
        left: list[Effect] = []
        if was_inside:
            left = [
                Tell(sibling, Left(why="new term" if why == "new term" else "expelled")) for sibling in self.siblings
            ]
        return [*left, *self._greet(now_s)]
