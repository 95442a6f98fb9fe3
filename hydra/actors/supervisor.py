"""Supervision of processes as a pure machine: who is started when, who is given another chance, who is given up.

One for one: a dead child says nothing about its siblings. Each has a restart intensity (deaths within a window) and a
back-off that doubles; a child beyond its intensity is given up, and a house without its coordinator or frontend is
closed. Each child beats on a pipe: silence gets it SIGKILL and a restart, a stopped one too, but not when the parent
was stopped as well and could not have heard it. Stopping is in reverse order of starting. Source: Erlang/OTP's
supervisor principles; the numbers are sized for processes that load weights.
"""

import random
import signal
from typing import Literal

import attrs

from hydra.actors.machine import CancelTimer, Effect, Event, Received, Send, SetTimer, TimerFired
from hydra.protocol.ids import REGISTRY, NodeId
from hydra.protocol.messages import ChildExited, KillWorker, SpawnWorker

DEATHS_MAX = 5
DEATHS_WITHIN_S = 300.0
BACKOFF_FIRST_S = 0.2
BACKOFF_MOST_S = 30.0
SILENCE_MAX_S = 10.0
HOPELESS = (2, 3, 4, 6, 7)  # exit codes of the front door that another try cannot mend
START_GRACE_S = 60.0  # importing torch on a busy machine
ASLEEP_S = 1.0  # a look at a child that comes so late tells that this parent was stopped itself


@attrs.frozen(kw_only=True)
class ChildPlan:
    """One child: its name, and whether the house can stand without it."""

    name: NodeId
    role: Literal["coordinator", "frontend", "worker"]
    vital: bool


# ---------------------------------------------------------------- events


@attrs.frozen
class Began:
    """The parent is ready to start its children."""


@attrs.frozen
class ChildStarted:
    name: NodeId
    pid: int


@attrs.frozen
class ChildBeat:
    name: NodeId


@attrs.frozen
class ChildReady:
    """The child says that it can do its work."""

    name: NodeId


@attrs.frozen
class ChildGone:
    name: NodeId
    pid: int
    returncode: int


@attrs.frozen
class StopAsked:
    """Ctrl-C, SIGTERM: the first drains, the second stops now."""


# ---------------------------------------------------------------- effects


@attrs.frozen
class StartChild:
    name: NodeId


@attrs.frozen
class SignalChild:
    name: NodeId
    pid: int
    number: int


@attrs.frozen
class SayReady:
    """All that was promised at start is up: print the ready line."""


@attrs.frozen
class Finish:
    exit_code: int
    why: str


@attrs.define
class DeathBook:
    """Decides whether one more death is bad luck or a broken child, and how long to wait before the next try."""

    rng: random.Random
    _deaths_s: list[float] = attrs.field(factory=list, init=False)

    def may_restart(self, now_s: float) -> bool:
        self._deaths_s = [*(d for d in self._deaths_s if d > now_s - DEATHS_WITHIN_S), now_s]
        return len(self._deaths_s) <= DEATHS_MAX

    def pause_s(self) -> float:
        """Doubles with every recent death; the jitter keeps a crowd from returning at once."""
        ceiling_s = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** (len(self._deaths_s) - 1))
        return self.rng.uniform(ceiling_s / 2, ceiling_s)


@attrs.define(eq=False)
class _Child:
    plan: ChildPlan
    book: DeathBook
    pid: int | None = None
    last_beat_s: float = 0.0
    beaten: bool = False  # since this start
    look_at_s: float = 0.0  # when its silence is judged next
    ready: bool = False
    given_up: bool = False
    restarts: int = 0


@attrs.define(eq=False)
class Supervisor:
    """Keeps the children of one parent."""

    plans: tuple[ChildPlan, ...]
    rng: random.Random
    drain_timeout_s: float = 30.0
    silence_max_s: float = SILENCE_MAX_S
    _children: dict[NodeId, _Child] = attrs.field(init=False)
    _stopping: Literal["no", "drain", "now"] = attrs.field(default="no", init=False)
    _exit_code: int = attrs.field(default=0, init=False)
    _why: str = attrs.field(default="asked to stop", init=False)
    _said_ready: bool = attrs.field(default=False, init=False)
    _finished: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._children = {plan.name: _Child(plan, DeathBook(self.rng)) for plan in self.plans}

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        match event:
            case Began():
                return [StartChild(name) for name in self._children]
            case ChildStarted(name=name, pid=pid):
                return self._started(name, pid, now_s)
            case ChildBeat(name=name):
                self._children[name].last_beat_s, self._children[name].beaten = now_s, True
                return []
            case ChildReady(name=name):
                return self._ready(name)
            case ChildGone() as gone:
                return self._gone(gone, now_s)
            case TimerFired(key=("start", str(name))):
                return [StartChild(NodeId(name))] if self._stopping == "no" else []
            case TimerFired(key=("silence", str(name))):
                return self._silence(NodeId(name), now_s)
            case TimerFired(key="drained"):
                return self._stop("now")
            case StopAsked():
                if self._stopping == "no":
                    return [SetTimer("drained", now_s + self.drain_timeout_s + 2.0), *self._stop("drain")]
                return self._stop("now")
            case Received(message=KillWorker(node_id=name, pid=pid)):
                child = self._children.get(name)
                return [SignalChild(name, pid, signal.SIGKILL)] if child is not None and child.pid == pid else []
            case Received(message=SpawnWorker(node_id=name)):
                child = self._children.get(name)
                return [StartChild(name)] if child is not None and child.pid is None and not child.given_up else []
            case _:
                return []  # membership came or went: children do not depend on it

    @property
    def restarts(self) -> dict[NodeId, int]:
        return {name: child.restarts for name, child in self._children.items()}

    def _started(self, name: NodeId, pid: int, now_s: float) -> list[Effect]:
        child = self._children[name]
        child.pid, child.last_beat_s, child.beaten = pid, now_s, False
        if self._stopping != "no":
            return [SignalChild(name, pid, signal.SIGKILL)]
        return self._look_at(child, now_s + self.silence_max_s)

    def _ready(self, name: NodeId) -> list[Effect]:
        self._children[name].ready = True
        if self._said_ready or self._children[name].plan.role == "worker":
            return []
        self._said_ready = True
        return [SayReady()]

    def _silence(self, name: NodeId, now_s: float) -> list[Effect]:
        child = self._children[name]
        if child.pid is None:
            return []
        if now_s > child.look_at_s + ASLEEP_S:  # what it said meanwhile may be in its pipe still
            return self._look_at(child, now_s + self.silence_max_s)
        limit_s = self.silence_max_s if child.beaten else max(START_GRACE_S, self.silence_max_s)
        due_s = child.last_beat_s + limit_s
        if now_s < due_s:
            return self._look_at(child, due_s)
        return [SignalChild(name, child.pid, signal.SIGKILL)]

    def _look_at(self, child: _Child, at_s: float) -> list[Effect]:
        child.look_at_s = at_s
        return [SetTimer(("silence", child.plan.name), at_s)]

    def _gone(self, gone: ChildGone, now_s: float) -> list[Effect]:
        child = self._children[gone.name]
        if child.pid != gone.pid:
            return []
        child.pid, child.ready = None, False
        how = f"signal {-gone.returncode}" if gone.returncode < 0 else f"exit {gone.returncode}"
        effects: list[Effect] = [CancelTimer(("silence", gone.name))]
        if self._stopping != "no":
            return [*effects, *self._next_to_stop()]
        effects.append(Send(REGISTRY, ChildExited(node_id=gone.name, pid=gone.pid, how=how)))
        if gone.returncode in HOPELESS:
            return [*effects, *self._close(gone.returncode, f"{gone.name} cannot start here")]
        if child.book.may_restart(now_s):
            child.restarts += 1
            return [*effects, SetTimer(("start", gone.name), now_s + child.book.pause_s())]
        child.given_up = True
        if child.plan.vital:
            return [*effects, *self._close(1, f"{gone.name} died too often (last: {how})")]
        return effects

    # ------------------------------------------------------------ stopping

    def _close(self, exit_code: int, why: str) -> list[Effect]:
        self._exit_code, self._why = exit_code, why
        return self._stop("now")

    def _stop(self, how: Literal["drain", "now"]) -> list[Effect]:
        self._stopping = how
        if how == "now":
            alive = [child for child in self._children.values() if child.pid is not None]
            kills: list[Effect] = [
                SignalChild(child.plan.name, child.pid, signal.SIGKILL) for child in alive if child.pid is not None
            ]
            return kills or self._finish()
        return self._next_to_stop()

    def _next_to_stop(self) -> list[Effect]:
        """The last started goes first: a frontend ends its streams while there is still somebody to compute them."""
        for child in reversed(list(self._children.values())):
            if child.pid is not None:
                number = signal.SIGTERM if self._stopping == "drain" else signal.SIGKILL
                return [SignalChild(child.plan.name, child.pid, number)]
        return self._finish()

    def _finish(self) -> list[Effect]:
        if self._finished:
            return []
        self._finished = True
        return [CancelTimer("drained"), Finish(self._exit_code, self._why)]
