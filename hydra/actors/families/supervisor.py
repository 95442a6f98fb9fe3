"""Supervision of processes as a pure machine: who is started when, who is given another chance, who is given up.

One for one: a dead child says nothing about its siblings. A child that has served is started again for ever, after a
pause that grows while it dies often; one that has never come up is given up after a few deaths, or at once when it
says that another try would not help. Whatever is given up is told; the parent ends when it cannot serve without
that child, or when nothing is left that could serve. Each child beats on a pipe: silence gets it SIGKILL and a
restart, a stopped one too, but not when the parent was stopped as well and could not have heard it. Source:
Erlang/OTP's supervisor principles; the numbers are sized for processes that load weights.
"""

import random
import signal
from typing import Literal, TypeAlias

import attrs

from hydra.actors.core.machine import CancelTimer, Effect, Event, Received, Send, SetTimer, TimerFired
from hydra.actors.core.names import REGISTRY
from hydra.actors.families.death_book import DeathBook
from hydra.protocol.ids import NodeId
from hydra.protocol.messages.membership import ChildExited, KillWorker

DEATHS_UNSEEN_MAX = 5  # of a child that has never come up
PAUSE_MOST_S = {"coordinator": 2.0, "frontend": 2.0, "worker": 8.0}  # without one of the first two nobody is served
CHILD_SILENCE_MAX_S = 10.0
HOPELESS = (2, 3, 4, 6, 7)  # exit codes of the front door that another try cannot mend
ENVIRONMENT = 4  # the exit code when a child was given up that had no such word
STOPPING_ORDER = ("frontend", "coordinator", "worker")
START_GRACE_S = 60.0  # importing torch on a busy machine
ASLEEP_S = 1.0  # a look at a child that comes so late tells that this parent was stopped itself


ChildRole: TypeAlias = Literal["coordinator", "frontend", "worker"]


@attrs.frozen(kw_only=True)
class ChildPlan:
    """One child: its name, and whether the others can serve without it."""

    name: NodeId
    role: ChildRole
    vital: bool


# ---------------------------------------------------------------- events


@attrs.frozen
class Began:
    """Event: the parent is ready to start its children."""


@attrs.frozen
class ChildStarted:
    """Event: the child runs."""

    name: NodeId
    pid: int


@attrs.frozen
class ChildBeat:
    """Event: the child says that it is alive."""

    name: NodeId


@attrs.frozen
class ChildUp:
    """Event: the child says that it has found its place: it listens, or the coordinator has let it in."""

    name: NodeId


@attrs.frozen
class ChildReady:
    """Event: the child says that it can do its work."""

    name: NodeId


@attrs.frozen
class ChildGone:
    """Event: the child has ended."""

    name: NodeId
    pid: int
    returncode: int


@attrs.frozen
class ChildNotStarted:
    """Event: the machine would not start a process for it."""

    name: NodeId
    reason: str


@attrs.frozen
class StopAsked:
    """Event: Ctrl-C or SIGTERM: the first drains, the second stops now."""


# ---------------------------------------------------------------- effects


@attrs.frozen
class StartChild:
    """Effect: start this child; answer ChildStarted, or ChildNotStarted."""

    name: NodeId


@attrs.frozen
class SignalChild:
    """Effect: send this signal to the child, if it still has this pid."""

    name: NodeId
    pid: int
    number: int


@attrs.frozen
class SayReady:
    """Effect: all that was promised at start is up: print the ready line."""


@attrs.frozen(kw_only=True)
class TellDeath:
    """Effect: say that a child has died and will be started again."""

    name: NodeId
    how: str
    often: str  # "6 times in 2 minutes"
    next_start_s: float  # from now


@attrs.frozen(kw_only=True)
class TellGivenUp:
    """Effect: say that a child will not be started again."""

    name: NodeId
    how: str
    often: str
    fix: str


@attrs.frozen(kw_only=True)
class FinishParent:
    """Effect: the last child is gone: end. `asked`: because somebody wanted the end, and not by itself."""

    exit_code: int
    why: str
    asked: bool


@attrs.define(eq=False)
class _Child:
    plan: ChildPlan
    book: DeathBook
    pid: int | None = None
    last_beat_s: float = 0.0
    beaten: bool = False  # since this start
    up_s: float | None = None  # when it came up, since this start
    served: bool = False  # it has come up at least once
    stop_signal: int | None = None  # the last one that asked it to end
    look_at_s: float = 0.0  # when its silence is judged next
    ready: bool = False
    given_up: bool = False


@attrs.define(eq=False)
class Supervisor:
    """Keeps the children of one parent."""

    plans: tuple[ChildPlan, ...]
    rng: random.Random
    drain_timeout: float = 30.0
    silence_max_s: float = CHILD_SILENCE_MAX_S
    remote_workers: bool = False  # workers of other parents may come, so that a parent without its own can serve
    _children: dict[NodeId, _Child] = attrs.field(init=False)
    _stopping: Literal["no", "drain", "now"] = attrs.field(default="no", init=False)
    _exit_code: int = attrs.field(default=0, init=False)
    _why: str = attrs.field(default="asked to stop", init=False)
    _asked: bool = attrs.field(default=True, init=False)
    _said_ready: bool = attrs.field(default=False, init=False)
    _finished: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._children = {plan.name: _Child(plan, DeathBook(self.rng, PAUSE_MOST_S[plan.role])) for plan in self.plans}

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        match event:
            case Began():
                return [StartChild(name) for name in self._children]
            case ChildStarted(name=name, pid=pid):
                return self._started(name, pid, now_s)
            case ChildBeat(name=name):
                self._children[name].last_beat_s, self._children[name].beaten = now_s, True
                return []
            case ChildUp(name=name):
                self._came_up(name, now_s)
                return []
            case ChildReady(name=name):
                self._came_up(name, now_s)
                return self._ready(name)
            case ChildGone() as gone:
                return self._gone(gone, now_s)
            case ChildNotStarted(name=name, reason=reason):
                return self._died(self._children[name], f"could not be started: {reason}", None, now_s)
            case TimerFired(key=("start", str(name))):
                return self._start(NodeId(name))
            case TimerFired(key=("silence", str(name))):
                return self._silence(NodeId(name), now_s)
            case TimerFired(key="drained"):
                return self._stop("now")
            case StopAsked():
                if self._stopping == "no":
                    return [SetTimer("drained", now_s + self.drain_timeout + 2.0), *self._stop("drain")]
                return self._stop("now")
            case Received(message=KillWorker(node_id=name, pid=pid)):
                child = self._children.get(name)
                return [SignalChild(name, pid, signal.SIGKILL)] if child is not None and child.pid == pid else []
            case _:
                return []  # membership came or went: children do not depend on it

    def check(self) -> None:
        """Who runs and who does not. Raises AssertionError."""
        pids = [child.pid for child in self._children.values() if child.pid is not None]
        assert len(set(pids)) == len(pids), "two children are one process"
        for name, child in self._children.items():
            assert child.plan.name == name, f"{child.plan.name} is kept under {name}"
            runs = child.pid is not None
            left = child.up_s is not None or child.stop_signal is not None or child.ready
            assert runs or not left, f"{name} is gone, and something of it is remembered"
            assert not (runs and child.given_up), f"{name} is given up, and runs"
            child.book.check()
        assert not self._finished or not pids, "it has finished, and children run"
        assert not self._finished or self._stopping != "no", "it has finished, and nobody stopped it"
        assert self._asked or self._exit_code, "it ends by itself, and says that all went well"

    def _start(self, name: NodeId) -> list[Effect]:
        child = self._children[name]
        return [StartChild(name)] if self._stopping == "no" and child.pid is None and not child.given_up else []

    def _started(self, name: NodeId, pid: int, now_s: float) -> list[Effect]:
        child = self._children[name]
        child.pid, child.last_beat_s, child.beaten, child.up_s = pid, now_s, False, None
        if self._stopping != "no":
            return self._ask_to_end([child], signal.SIGKILL)
        return self._look_at(child, now_s + self.silence_max_s)

    def _came_up(self, name: NodeId, now_s: float) -> None:
        child = self._children[name]
        child.served = True
        if child.up_s is None:
            child.up_s = now_s

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
        if now_s < due_s:  # one that was slow to start may fall silent long before its grace is over
            return self._look_at(child, min(due_s, now_s + self.silence_max_s))
        return [SignalChild(name, child.pid, signal.SIGKILL)]

    def _look_at(self, child: _Child, at_s: float) -> list[Effect]:
        child.look_at_s = at_s
        return [SetTimer(("silence", child.plan.name), at_s)]

    # ------------------------------------------------------------ deaths

    def _gone(self, gone: ChildGone, now_s: float) -> list[Effect]:
        child = self._children[gone.name]
        if child.pid != gone.pid:
            return []
        how = f"signal {-gone.returncode}" if gone.returncode < 0 else f"exit {gone.returncode}"
        told: list[Effect] = [
            CancelTimer(("silence", gone.name)),
            Send(REGISTRY, ChildExited(node_id=gone.name, pid=gone.pid, how=how)),
        ]
        return [*told, *self._died(child, how, gone.returncode, now_s)]

    def _died(self, child: _Child, how: str, returncode: int | None, now_s: float) -> list[Effect]:
        lived_s = now_s - child.up_s if child.up_s is not None else 0.0
        child.pid, child.up_s, child.stop_signal, child.ready = None, None, None, False
        if self._stopping != "no":
            return self._next_to_stop()
        name, pause_s = child.plan.name, child.book.note(now_s, lived_s)
        often = child.book.recent()
        if self._is_worth_another_try(child, returncode):
            told = TellDeath(name=name, how=how, often=often, next_start_s=pause_s)
            return [told, SetTimer(("start", name), now_s + pause_s)]
        child.given_up = True
        fix = "mend what it wrote above, and start again"
        return [TellGivenUp(name=name, how=how, often=often, fix=fix), *self._go_on_without(child, how, returncode)]

    def _is_worth_another_try(self, child: _Child, returncode: int | None) -> bool:
        """What has served will serve again. Others may say that they never will, or die until nobody believes them.

        A coordinator and a frontend have served when all was ready: what is wrong with a model is found out late.
        """
        proven = child.served if child.plan.role == "worker" else self._said_ready
        if returncode in HOPELESS and not proven:
            return False
        return child.served or child.book.total <= DEATHS_UNSEEN_MAX

    def _go_on_without(self, child: _Child, how: str, returncode: int | None) -> list[Effect]:
        """Ends if no child of it could serve any more."""
        alone = child.plan.role == "worker" and child.plan.vital
        exit_code = ENVIRONMENT
        if returncode is not None and (returncode in HOPELESS or (alone and returncode > 0)):
            exit_code = returncode
        if child.plan.vital:
            return self._close(exit_code, f"{child.plan.name} is given up (last: {how})")
        workers = [other for other in self._children.values() if other.plan.role == "worker"]
        if self._said_ready or self.remote_workers or not all(worker.given_up for worker in workers):
            return []
        return self._close(exit_code, f"no worker is left that could serve (last: {child.plan.name}, {how})")

    # ------------------------------------------------------------ stopping

    def _close(self, exit_code: int, why: str) -> list[Effect]:
        self._exit_code, self._why, self._asked = exit_code, why, False
        return self._stop("now")

    def _stop(self, how: Literal["drain", "now"]) -> list[Effect]:
        self._stopping = how
        alive = [child for child in self._children.values() if child.pid is not None]
        if how == "now" and alive:
            return self._ask_to_end(alive, signal.SIGKILL)
        return self._next_to_stop()

    def _next_to_stop(self) -> list[Effect]:
        """A frontend ends its streams while there is still somebody to compute them. Then the coordinator, so that
        nobody plans over the workers that are left while they go one by one.
        """
        for role in STOPPING_ORDER:
            alive = [child for child in self._children.values() if child.plan.role == role and child.pid is not None]
            if alive:
                return self._ask_to_end(alive, signal.SIGTERM if self._stopping == "drain" else signal.SIGKILL)
        return self._finish()

    def _ask_to_end(self, children: list[_Child], number: int) -> list[Effect]:
        """Nobody is asked twice in the same way."""
        signals: list[Effect] = []
        for child in children:
            if child.pid is not None and child.stop_signal != number:
                child.stop_signal = number
                signals.append(SignalChild(child.plan.name, child.pid, number))
        return signals

    def _finish(self) -> list[Effect]:
        if self._finished:
            return []
        self._finished = True
        return [CancelTimer("drained"), FinishParent(exit_code=self._exit_code, why=self._why, asked=self._asked)]
