"""A stage's life: loading, loaded, ready; and out again. One machine for all slices that a worker holds.

TRANSITIONS below is the diagram of one slice. The machine moves the fence only by publishing on the board; the compute
thread acks each new fence itself, after its current step, and only then is the pool freed. Loading and activating run
elsewhere, one at a time per route; their results come back as events, and a result for an epoch that is no longer
wanted is let go.
"""

from typing import Literal

import attrs

from hydra.actors.core.facts import Joined, Left, Undelivered
from hydra.actors.core.machine import CancelTimer, Effect, Event, Received, Send, SetTimer, TimerFired
from hydra.actors.core.names import PLANNER
from hydra.actors.core.transitions import Cause, Transitions, rows
from hydra.actors.stage.stage_line import Fence
from hydra.actors.stage.step_limits import step_limits_of
from hydra.protocol.ids import Epoch, RouteId
from hydra.protocol.messages.plans import (
    Activate,
    DropSlice,
    Fenced,
    LoadFailed,
    LoadPhase,
    LoadProgress,
    LoadSlice,
    Ready,
    RouteBroken,
    SliceLoaded,
)
from hydra.protocol.model.load_report import SliceFacts
from hydra.protocol.refusal import Refusal

FENCE_LEASE_S = 30.0  # for the step in hand when the fence moves; the longest prefill chunk takes far less

# ---------------------------------------------------------------- effects of a stage


@attrs.frozen
class Publish:
    """Effect: put this fence on the board and wake the compute thread, which answers ThreadFenced."""

    fence: Fence


@attrs.frozen
class ThreadStuck:
    """Effect: the compute thread does not let go of a former epoch: end the process, which alone frees what it
    holds."""

    route: RouteId
    why: str


@attrs.frozen
class RunLoad:
    """Effect: load on the loader thread; answer SliceIn, or SliceRefused."""

    order: LoadSlice


@attrs.frozen
class RunActivate:
    """Effect: make the pool and warm up on the loader thread; answer Activated, or SliceRefused."""

    route: RouteId
    epoch: Epoch
    kv_blocks: int


@attrs.frozen
class RunDrop:
    """Effect: free pool and weights of a route on the loader thread; `weights` False keeps them as inventory."""

    route: RouteId
    weights: bool


# ---------------------------------------------------------------- events of a stage


@attrs.frozen
class ThreadFenced:
    """Event: the compute thread works for this epoch and for none before it."""

    route: RouteId
    epoch: Epoch


@attrs.frozen
class ThreadTrouble:
    """Event: the compute thread cannot go on with this epoch: a gap, or a next hop that takes nothing."""

    route: RouteId
    epoch: Epoch
    why: str
    side: Literal["in", "out"] = "in"  # "out": of the next hop's


@attrs.frozen
class SliceMoved:
    """Event: a load has come so far."""

    route: RouteId
    epoch: Epoch
    bytes_done: int
    bytes_total: int
    phase: LoadPhase = "reading"


@attrs.frozen
class SliceIn:
    """Event: the slice is in memory."""

    route: RouteId
    epoch: Epoch
    facts: SliceFacts


@attrs.frozen
class SliceRefused:
    """Event: the slice cannot be loaded, or not be made ready."""

    route: RouteId
    epoch: Epoch
    refusal: Refusal


@attrs.frozen
class Activated:
    """Event: the pool is there, and the first step will be no slower than the others."""

    route: RouteId
    epoch: Epoch


SlicePhase = Literal["fencing", "loading", "loaded", "activating", "ready", "dropping", "idle"]
TRANSITIONS = Transitions(
    "slice",
    "absent",
    (
        *rows("absent loading loaded activating ready dropping idle", LoadSlice, "fencing"),
        *rows("fencing", ThreadFenced, "loading"),
        *rows("loading", SliceIn, "loaded"),
        *rows("loaded", Activate, "activating"),
        *rows("activating", Activated, "ready"),
        *rows("loading activating", SliceRefused, "idle"),
        *rows("fencing loading loaded activating ready idle", DropSlice, "dropping"),
        *rows("dropping", ThreadFenced, "idle"),
        *rows("fencing loading loaded activating ready dropping", Left, "idle"),
    ),
)
FENCE_IS_SHUT = ("loading", "loaded", "activating")  # and the thread has said so: no step runs


@attrs.define
class _Slice:
    """One route's share on this worker."""

    epoch: Epoch
    phase: SlicePhase
    order: LoadSlice | None = None
    plan: Activate | None = None
    drop: RunDrop | None = None  # once the thread has let go


@attrs.define
class Stage:
    """Decides what this worker holds and when its steps may run."""

    _slices: dict[RouteId, _Slice] = attrs.field(factory=dict, init=False)
    _unfenced: set[RouteId] = attrs.field(factory=set, init=False)  # a fence is closed, and the thread has not said so

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        match event:
            case Received(message=LoadSlice() as order):
                return self._order(order, now_s)
            case Received(message=Activate() as plan):
                return self._activate(plan)
            case Received(message=DropSlice(route=route, epoch=epoch)):
                return self._drop(route, epoch, now_s)
            case ThreadFenced(route=route, epoch=epoch):
                return self._fenced(route, epoch, now_s)
            case SliceIn(route=route, epoch=epoch, facts=facts):
                return self._loaded(route, epoch, facts)
            case SliceRefused(route=route, epoch=epoch, refusal=refusal):
                return self._refused(route, epoch, refusal)
            case Activated(route=route, epoch=epoch):
                return self._activated(route, epoch)
            case SliceMoved() as moved:
                return self._moved(moved)
            case ThreadTrouble(route=route, epoch=epoch, why=why, side=side):
                return [Send(PLANNER, RouteBroken(route=route, epoch=epoch, why=why, side=side))]
            case Left():
                return self._leave(now_s)
            case TimerFired(key=("fence", int(route))):
                return [ThreadStuck(RouteId(route), f"a step has kept the compute thread for {FENCE_LEASE_S:.0f} s")]
            case Undelivered():
                return []  # nothing that a stage says can become that large
            case Joined():
                return []  # the coordinator orders; nothing to do until then
            case _:
                raise AssertionError(f"a stage cannot be told {event!r}")

    def wants(self, route: RouteId, epoch: Epoch) -> bool:
        """Whether this epoch is still the one to load for (the loader asks before it begins)."""
        held = self._slices.get(route)
        return held is not None and held.epoch == epoch and held.phase != "idle"

    def check(self) -> None:
        """What each phase has, and whose fence is awaited. Raises AssertionError."""
        for route, held in self._slices.items():
            what = f"route {route} is {held.phase}"
            assert held.phase in TRANSITIONS.states(), what
            assert held.order is not None or held.phase in ("dropping", "idle"), f"{what} without an order"
            assert held.order is None or held.order.epoch == held.epoch, f"{what} with an order of another epoch"
            assert held.plan is not None or held.phase not in ("activating", "ready"), f"{what} without a plan"
            assert held.phase not in ("fencing", "dropping") or route in self._unfenced, f"{what} with no fence awaited"
            assert held.phase not in (*FENCE_IS_SHUT, "ready") or route not in self._unfenced, f"{what} behind a fence"
            assert held.drop is None or route in self._unfenced, f"{what}, and a drop waits for no fence"
        assert self._unfenced <= self._slices.keys(), "a fence is awaited of a route that is not here"

    def _move(self, held: _Slice, cause: Cause, after: SlicePhase) -> None:
        TRANSITIONS.step(held.phase, cause, after)
        held.phase = after

    def _begin(self, route: RouteId, cause: Cause, begun: _Slice) -> None:
        """What was held of this route is let go; whatever comes back of it is not heard."""
        held = self._slices.get(route)
        TRANSITIONS.step(held.phase if held is not None else TRANSITIONS.first, cause, begun.phase)
        self._slices[route] = begun

    def _current(self, route: RouteId, epoch: Epoch, phase: SlicePhase) -> _Slice | None:
        held = self._slices.get(route)
        return held if held is not None and held.epoch == epoch and held.phase == phase else None

    def _close_fence(self, route: RouteId, epoch: Epoch, now_s: float) -> list[Effect]:
        """Nothing of an epoch before this one may pass any more; the thread says so itself, or is stuck."""
        publish = Publish(Fence(route=route, epoch=epoch, open=False))
        if route in self._unfenced:
            return [publish]  # its time runs already
        self._unfenced.add(route)
        return [publish, SetTimer(("fence", route), now_s + FENCE_LEASE_S)]

    def _order(self, order: LoadSlice, now_s: float) -> list[Effect]:
        held = self._slices.get(order.route)
        if held is not None and order.epoch <= held.epoch:
            return []  # an older order, or the same one twice
        self._begin(order.route, LoadSlice, _Slice(order.epoch, "fencing", order))
        return self._close_fence(order.route, order.epoch, now_s)

    def _fenced(self, route: RouteId, epoch: Epoch, now_s: float) -> list[Effect]:
        held = self._slices.get(route)
        if held is None or epoch < held.epoch:  # the thread lives, and has a later fence to see yet
            return [SetTimer(("fence", route), now_s + FENCE_LEASE_S)] if route in self._unfenced else []
        self._unfenced.discard(route)
        return [CancelTimer(("fence", route)), *self._let_go(route, epoch)]

    def _let_go(self, route: RouteId, epoch: Epoch) -> list[Effect]:
        """The thread has no step of an earlier epoch in hand, so what it used may be freed."""
        held = self._slices[route]
        fenced = Send(PLANNER, Fenced(route=route, epoch=epoch))
        if held.epoch != epoch:
            return []
        if held.phase == "fencing" and held.order is not None:
            self._move(held, ThreadFenced, "loading")
            return [fenced, RunLoad(held.order)]
        drop, held.drop = held.drop, None
        freed: list[Effect] = [drop] if drop is not None else []
        if held.phase == "dropping":
            self._move(held, ThreadFenced, "idle")
            return [fenced, *freed]
        return freed  # out of the cluster meanwhile: nobody is told

    def _moved(self, moved: SliceMoved) -> list[Effect]:
        if self._current(moved.route, moved.epoch, "loading") is None:
            return []
        progress = LoadProgress(
            route=moved.route,
            epoch=moved.epoch,
            bytes_done=moved.bytes_done,
            bytes_total=moved.bytes_total,
            phase=moved.phase,
        )
        return [Send(PLANNER, progress)]

    def _loaded(self, route: RouteId, epoch: Epoch, facts: SliceFacts) -> list[Effect]:
        held = self._current(route, epoch, "loading")
        if held is None:
            return []
        self._move(held, SliceIn, "loaded")
        loaded = SliceLoaded(
            route=route,
            epoch=epoch,
            kv_blocks_max=facts.kv_blocks_max,
            weight_bytes=facts.weight_bytes,
            read_bytes=facts.read_bytes,
            load_s=facts.load_s,
        )
        return [Send(PLANNER, loaded)]

    def _refused(self, route: RouteId, epoch: Epoch, refusal: Refusal) -> list[Effect]:
        held = self._current(route, epoch, "loading") or self._current(route, epoch, "activating")
        if held is None:
            return []
        self._move(held, SliceRefused, "idle")
        return [Send(PLANNER, LoadFailed(route=route, epoch=epoch, refusal=refusal))]

    def _activate(self, plan: Activate) -> list[Effect]:
        held = self._current(plan.route, plan.epoch, "loaded")
        if held is None:
            return []
        self._move(held, Activate, "activating")
        held.plan = plan
        return [RunActivate(plan.route, plan.epoch, plan.kv_blocks)]

    def _activated(self, route: RouteId, epoch: Epoch) -> list[Effect]:
        held = self._current(route, epoch, "activating")
        if held is None or held.plan is None:
            return []
        assert held.order is not None, "a slice is activated that was never ordered"
        self._move(held, Activated, "ready")
        plan = held.plan
        fence = Fence(
            route=route,
            epoch=epoch,
            open=True,
            last=plan.stage_index == plan.n_stages - 1,
            next_addr=plan.next_addr,
            credits=plan.credits,
            limits=step_limits_of(held.order, plan),
        )
        return [Publish(fence), Send(PLANNER, Ready(route=route, epoch=epoch))]

    def _drop(self, route: RouteId, epoch: Epoch, now_s: float) -> list[Effect]:
        """Answered by Fenced: by the thread's word, or at once where there is nothing that it could still be at."""
        held = self._slices.get(route)
        if held is None:
            return [Send(PLANNER, Fenced(route=route, epoch=epoch))]
        if epoch <= held.epoch:
            return []  # an older order, or the same one twice
        self._begin(route, DropSlice, _Slice(epoch, "dropping", drop=RunDrop(route, weights=True)))
        return self._close_fence(route, epoch, now_s)

    def _leave(self, now_s: float) -> list[Effect]:
        """Out of the cluster: nothing we compute counts any more. Weights stay as inventory, KV goes."""
        effects: list[Effect] = []
        for route, held in self._slices.items():
            if held.phase == "idle":
                continue
            drop = RunDrop(route, weights=False)
            if held.phase in FENCE_IS_SHUT:
                effects.append(drop)
            elif held.drop is None:  # a step may be running: freed once the thread lets go
                effects += self._close_fence(route, held.epoch, now_s)
                held.drop = drop
            self._move(held, Left, "idle")
        return effects
