"""Everybody but the coordinator: greets, beats, and greets again when it is not known any more.

    outside --Hello--> greeting --Welcome--> inside --Expelled | SayHello | beacon of another term--> greeting

The member tells its siblings (the stage, the sessions) when it is in and when it is out; what that means is theirs.
It does not know what its process is for: the greeting and the beat are made by its Identity.
"""

import attrs

from hydra.actors.core.facts import Joined, LaneBroken, Left
from hydra.actors.core.identity import Identity
from hydra.actors.core.machine import Effect, Event, Received, Send, SetTimer, Tell, TimerFired
from hydra.actors.core.names import REGISTRY
from hydra.protocol.ids import ActorName, Generation
from hydra.protocol.messages.membership import (
    Beacon,
    Expelled,
    Goodbye,
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


@attrs.define
class Member:
    """Keeps one process's membership."""

    identity: Identity
    siblings: tuple[ActorName, ...]
    term: int = 0
    generation: Generation | None = None
    _heartbeat_s: float = 0.5
    _gone: bool = attrs.field(default=False, init=False)

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        if self._gone:
            return []  # whoever said goodbye must not be heard again: a late beat would be asked to greet
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
