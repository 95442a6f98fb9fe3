"""A stage's life: loading, loaded, ready; and out again. One machine for all slices that a worker holds.

    (nothing) --LoadSlice--> fencing --thread acks--> loading --> loaded --Activate--> activating --> ready
        ^                       ^                                                                      |
        |                       +----------------------- LoadSlice of a later epoch -------------------+
        +-- DropSlice

The machine moves the fence only by publishing on the board; the compute thread acks each new fence itself, after its
current step, and only then is the pool freed. Loading and activating run elsewhere, one at a time per route; their
results come back as events, and a result for an epoch that is no longer wanted is let go.
"""

from typing import Literal

import attrs

from hydra.actors.core.facts import Joined, Left, Undelivered
from hydra.actors.core.machine import CancelTimer, Effect, Event, Received, Send, SetTimer, TimerFired
from hydra.actors.core.names import PLANNER
from hydra.actors.stage.stage_line import Fence
from hydra.actors.stage.step_limits import limits_of
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
    """Put this fence on the board and wake the compute thread, which answers ThreadFenced."""

    fence: Fence


@attrs.frozen
class ThreadStuck:
    """The compute thread does not let go of a former epoch. Nothing in this process can free what it holds."""

    route: RouteId
    why: str


@attrs.frozen
class RunLoad:
    """Load on the loader thread; answer SliceIn, or SliceRefused."""

    order: LoadSlice


@attrs.frozen
class RunActivate:
    """Make the pool and warm up on the loader thread; answer Activated, or SliceRefused."""

    route: RouteId
    epoch: Epoch
    kv_blocks: int


@attrs.frozen
class RunDrop:
    """Free pool and weights of a route on the loader thread; `weights` False keeps them as inventory."""

    route: RouteId
    weights: bool


# ---------------------------------------------------------------- events of a stage


@attrs.frozen
class ThreadFenced:
    route: RouteId
    epoch: Epoch


@attrs.frozen
class ThreadTrouble:
    """The compute thread cannot go on with this epoch: a gap, or a next hop that takes nothing."""

    route: RouteId
    epoch: Epoch
    why: str
    side: Literal["in", "out"] = "in"  # "out": of the next hop's


@attrs.frozen
class SliceMoved:
    route: RouteId
    epoch: Epoch
    bytes_done: int
    bytes_total: int
    phase: LoadPhase = "reading"


@attrs.frozen
class SliceIn:
    route: RouteId
    epoch: Epoch
    facts: SliceFacts


@attrs.frozen
class SliceRefused:
    route: RouteId
    epoch: Epoch
    refusal: Refusal


@attrs.frozen
class Activated:
    route: RouteId
    epoch: Epoch


Phase = Literal["fencing", "loading", "loaded", "activating", "ready", "idle"]


@attrs.define
class _Slice:
    """One route's share on this worker."""

    epoch: Epoch
    phase: Phase
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

    def _current(self, route: RouteId, epoch: Epoch, phase: Phase) -> _Slice | None:
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
        self._slices[order.route] = _Slice(order.epoch, "fencing", order)
        return self._close_fence(order.route, order.epoch, now_s)

    def _fenced(self, route: RouteId, epoch: Epoch, now_s: float) -> list[Effect]:
        held = self._slices.get(route)
        if held is None or epoch < held.epoch:  # the thread lives, and has a later fence to see yet
            return [SetTimer(("fence", route), now_s + FENCE_LEASE_S)] if route in self._unfenced else []
        self._unfenced.discard(route)
        return [CancelTimer(("fence", route)), *self._let_go(route, epoch)]

    def _let_go(self, route: RouteId, epoch: Epoch) -> list[Effect]:
        idle = self._current(route, epoch, "idle")
        if idle is not None and idle.drop is not None:
            drop, idle.drop = idle.drop, None
            return [drop]
        held = self._current(route, epoch, "fencing")
        if held is None or held.order is None:
            return []
        held.phase = "loading"
        return [Send(PLANNER, Fenced(route=route, epoch=epoch)), RunLoad(held.order)]

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
        held.phase = "loaded"
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
        held.phase = "idle"
        return [Send(PLANNER, LoadFailed(route=route, epoch=epoch, refusal=refusal))]

    def _activate(self, plan: Activate) -> list[Effect]:
        held = self._current(plan.route, plan.epoch, "loaded")
        if held is None:
            return []
        held.phase, held.plan = "activating", plan
        return [RunActivate(plan.route, plan.epoch, plan.kv_blocks)]

    def _activated(self, route: RouteId, epoch: Epoch) -> list[Effect]:
        held = self._current(route, epoch, "activating")
        if held is None or held.plan is None:
            return []
        assert held.order is not None, "a slice is activated that was never ordered"
        held.phase = "ready"
        plan = held.plan
        fence = Fence(
            route=route,
            epoch=epoch,
            open=True,
            last=plan.stage_index == plan.n_stages - 1,
            next_addr=plan.next_addr,
            credits=plan.credits,
            limits=limits_of(held.order, plan),
        )
        return [Publish(fence), Send(PLANNER, Ready(route=route, epoch=epoch))]

    def _drop(self, route: RouteId, epoch: Epoch, now_s: float) -> list[Effect]:
        held = self._slices.get(route)
        if held is None or epoch < held.epoch:
            return []
        self._slices[route] = _Slice(epoch, "idle", drop=RunDrop(route, weights=True))
        return self._close_fence(route, epoch, now_s)

    def _leave(self, now_s: float) -> list[Effect]:
        """Out of the cluster: nothing we compute counts any more. Weights stay as inventory, KV goes."""
        effects: list[Effect] = []
        for route, held in self._slices.items():
            if held.phase == "idle" and held.order is None:
                continue
            drop = RunDrop(route, weights=False)
            effects += self._close_fence(route, held.epoch, now_s)
            if held.phase == "ready":
                held.drop = drop
            else:
                effects.append(drop)  # the fence is closed already: no step runs
            held.phase = "idle"
        return effects
