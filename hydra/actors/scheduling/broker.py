"""Who is computed when. The Broker takes generations in, keeps every route busy, and hands tokens back.

It holds one RouteScheduler per route that is up, and a bounded queue per model of generations that wait for room or for
a route; where a model has several routes, the dispatcher chooses.
It decides eos, stop ids and max_tokens; stop strings and leaving clients are the Session's. When a route goes down it
tells every session that had a row there to open again, and says which of them were in flight when a stage died.
It does not know which nodes exist, what a layer is, or where a token is shown.
"""

import attrs

from hydra.actors.core.facts import (
    FrontendLost,
    ModelGone,
    ModelKnown,
    ModelStalled,
    RouteDown,
    RouteServed,
    RouteUp,
    StepOverdue,
    Undelivered,
)
from hydra.actors.core.machine import CancelTimer, Effect, Event, Received, Send, SetTimer, Tell, TimerFired
from hydra.actors.core.names import PLANNER, PROBE_PEER, REGISTRY_NAME, SESSIONS
from hydra.actors.scheduling.data_link import CloseLink, LinkFull, OpenLink, SendStep, StepBack
from hydra.actors.scheduling.dispatcher import ActiveRoute, dispatch
from hydra.actors.scheduling.fair_queue import FairQueue, Waiting
from hydra.actors.scheduling.kv_ledger import KvLedger
from hydra.actors.scheduling.model_queue import ModelQueue
from hydra.actors.scheduling.probes import READY_FOR_S, Probes, ready_told
from hydra.actors.scheduling.row import Row, RowKey
from hydra.actors.scheduling.row_faults import RowFaults
from hydra.actors.scheduling.scheduler import RouteScheduler
from hydra.actors.scheduling.token_columns import tokens_of
from hydra.actors.scheduling.vocabulary_check import beyond_vocabulary, of_the_vocabulary
from hydra.protocol.batch import Step, StepResult
from hydra.protocol.context_length import context_overflow
from hydra.protocol.ids import Address, PeerId, RouteId, RowId, SessionId
from hydra.protocol.messages.generations import Close, Open, OpenRefused, Reopen
from hydra.protocol.messages.models import ReadyRequest
from hydra.protocol.messages.plans import RouteBroken
from hydra.protocol.refusal import Refusal
from hydra.protocol.settings.engine import EngineSettings

STEP_LEASE_S = 2.0
UNMEASURED_LEASE_S = 30.0  # before the first step of an epoch came back: nobody knows how fast this model is
OVERDUE_AGAIN_S = 0.5


@attrs.define(eq=False)
class Broker:
    """Serves generations on the routes that are up."""

    limits: EngineSettings = attrs.field(factory=EngineSettings)
    stale_dropped: int = attrs.field(default=0, init=False)
    tokens_sent: int = attrs.field(default=0, init=False)
    _models: dict[str, ModelQueue] = attrs.field(factory=dict, init=False)
    _known: dict[RowKey, tuple[str, Open]] = attrs.field(factory=dict, init=False)
    _arrivals: dict[RowKey, int] = attrs.field(factory=dict, init=False)
    _faults: RowFaults = attrs.field(factory=RowFaults, init=False)
    _next_arrival: int = attrs.field(default=0, init=False)
    _next_row: int = attrs.field(default=1, init=False)
    _probes: Probes = attrs.field(factory=Probes, init=False)

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        match event:
            case StepBack(result=result):
                return self._step_back(result, now_s)
            case Received(sender=sender, message=Open() as opening):
                return self._open(RowKey(sender.peer, opening.session), opening, now_s)
            case Received(sender=sender, message=Close(session=session, attempt=attempt)):
                return self._close(RowKey(sender.peer, session), attempt, now_s)
            case Received(sender=sender, message=ReadyRequest() as asked):
                return self._ready(sender, asked, now_s)
            case RouteUp() as up:
                return self._route_up(up, now_s)
            case RouteDown() as down:
                return self._route_down(down, now_s)
            case ModelKnown(model_id=model_id, max_model_len=length):
                known = self._model(model_id, length)
                return self._set_length(known, length) if length else []
            case ModelStalled(model_id=model_id, refusal=refusal):
                self._models[model_id].stalled = refusal
                return []
            case ModelGone() as gone:
                return self._model_gone(gone)
            case FrontendLost(peer=peer):
                return self._frontend_lost(peer, now_s)
            case Undelivered():
                return []  # tokens of the most rows that there can be, and any refusal, are far from that large
            case LinkFull(route=route, epoch=epoch):
                why = "the first stage takes nothing"
                return [Send(PLANNER, RouteBroken(route=route, epoch=epoch, why=why, side="out"))]
            case TimerFired(key=("overdue", int(route))):
                return self._overdue(RouteId(route), now_s)
            case TimerFired(key=("probe", int(session))):
                return self._probe_ended(SessionId(session), "no token came through in time")
            case _:
                raise AssertionError(f"a broker cannot be told {event!r}")

    def statistics(self, model_id: str) -> tuple[int, int, int, int]:
        """(blocks total, blocks free, running, waiting) of a model."""
        model = self._models.get(model_id)
        return (0, 0, 0, 0) if model is None else model.counts()

    def check(self) -> None:
        """What runs or waits is known, and of its model. Raises AssertionError; for tests and the simulator."""
        for model_id, model in self._models.items():
            for key in [*(row.key for row in model.rows), *(waiting.key for waiting in model.waiting)]:
                assert key in self._known and self._known[key][0] == model_id, f"{key} is of no known generation"
        assert self._arrivals.keys() == self._known.keys(), "an arrival is remembered for nothing"

    # ------------------------------------------------------------ opening and closing

    def _open(self, key: RowKey, opening: Open, now_s: float) -> list[Effect]:
        known = self._known.get(key)
        if known is not None and opening.attempt <= known[1].attempt:
            return []  # said twice
        self._next_arrival += 1
        waiting = Waiting(key, opening, self._arrivals.get(key, self._next_arrival))
        refused = self._refusal(opening) or self._crowded(waiting)
        if refused is not None:
            return self._end(key, opening, refused)
        if known is not None:
            self._forget_row(key)
        model = self._models[opening.model_id]
        self._arrivals[key] = waiting.arrival
        self._known[key] = (opening.model_id, opening)
        model.waiting.put(waiting)
        return self._pump(model, now_s)

    def _model(self, model_id: str, max_model_len: int) -> ModelQueue:
        """The model of this name, made if it is not there yet."""
        if model_id not in self._models:
            queue = FairQueue(self.limits.max_running, self.limits.max_waiting)
            self._models[model_id] = ModelQueue(model_id, max_model_len, queue)
        return self._models[model_id]

    def _refusal(self, opening: Open) -> Refusal | None:
        model = self._models.get(opening.model_id)
        if model is None:
            return Refusal(code="model_not_found", message=f"no model {opening.model_id!r} is loaded", param="model")
        if len(opening.history) == 0 or opening.prompt_tokens > len(opening.history):
            return Refusal(code="invalid_value", message="a generation needs at least one prompt token")
        if opening.prompt_tokens == 0 or len(opening.history) > opening.prompt_tokens + opening.max_tokens:
            return Refusal(code="invalid_value", message="a history is a prompt and at most max_tokens behind it")
        for route in model.routes.values():
            if (beyond := beyond_vocabulary(opening, route.up.vocab)) is not None:
                return beyond
        if model.max_model_len and opening.prompt_tokens + opening.max_tokens > model.max_model_len:
            return context_overflow(model.max_model_len, opening.prompt_tokens, opening.max_tokens, "max_tokens")
        return None

    def _crowded(self, waiting: Waiting) -> Refusal | None:
        """Asked once, at the door: whoever waits already keeps its place."""
        if waiting.open.attempt > 0:
            return None
        model = self._models[waiting.open.model_id]
        return model.stalled or model.waiting.refusal(waiting)

    def _end(self, key: RowKey, opening: Open, refusal: Refusal) -> list[Effect]:
        self._forget(key)
        if key.peer == PROBE_PEER:
            return self._probe_ended(key.session, refusal.message)
        message = OpenRefused(session=opening.session, attempt=opening.attempt, refusal=refusal)
        return [Send(Address(key.peer, SESSIONS), message)]

    def _close(self, key: RowKey, attempt: int, now_s: float) -> list[Effect]:
        known = self._known.get(key)
        if known is None or attempt < known[1].attempt:
            return []
        self._forget(key)
        return self._pump(self._models[known[0]], now_s)

    def _forget(self, key: RowKey) -> None:
        """Everything about this generation: row, place in the queue, seniority."""
        self._forget_row(key)
        self._known.pop(key, None)
        self._arrivals.pop(key, None)
        self._faults.forget(key)

    def _forget_row(self, key: RowKey) -> None:
        model = self._models.get(self._known[key][0]) if key in self._known else None
        if model is None:
            return
        model.waiting.discard(key)
        for route in model.routes.values():
            for row in [row for row in route.scheduler.rows.values() if row.key == key]:
                route.scheduler.remove(row)

    def _frontend_lost(self, peer: PeerId, now_s: float) -> list[Effect]:
        for key in [key for key in self._known if key.peer == peer]:
            self._forget(key)
        return [effect for model in self._models.values() for effect in self._pump(model, now_s)]

    # ------------------------------------------------------------ routes

    def _route_up(self, up: RouteUp, now_s: float) -> list[Effect]:
        model = self._model(up.model_id, up.max_model_len)
        assert up.route not in model.routes, "a route came up twice without going down"
        scheduler = RouteScheduler(
            route=up.route,
            epoch=up.epoch,
            n_stages=len(up.nodes),
            credits=up.credits,
            ledger=KvLedger(up.kv_blocks, up.block_size, self.limits.prefix_cache),
            max_batch_tokens=self.limits.max_batch_tokens,
            length_rule=up.length_rule,
            share_prefixes=self.limits.share_prefixes,
        )
        model.routes[up.route] = route = ActiveRoute(up, scheduler)
        model.waiting.resize(self.limits.max_running * len(model.routes))
        effects: list[Effect] = [OpenLink(up.route, up.epoch, up.first_addr, up.credits)]
        effects += self._set_length(model, max(other.up.max_model_len for other in model.routes.values()))
        effects += self._pump(model, now_s)
        return [*effects, *([] if scheduler.rows else self._serves(route))]  # no rows: none waits for a token

    def _set_length(self, model: ModelQueue, max_model_len: int) -> list[Effect]:
        """Who waits and is too long for every route now is told so."""
        model.max_model_len = max_model_len
        effects: list[Effect] = []
        for waiting in list(model.waiting):
            refusal = self._refusal(waiting.open)
            if refusal is not None:
                effects += self._end(waiting.key, waiting.open, refusal)
        return effects

    def _route_down(self, down: RouteDown, now_s: float) -> list[Effect]:
        model = self._models.get(down.model_id)
        route = model.routes.pop(down.route, None) if model is not None else None
        if model is None or route is None:
            return []
        scheduler = route.scheduler
        for row in (*scheduler.rows.values(), *scheduler.ended):
            model.waiting.end(row.key)
        model.waiting.resize(self.limits.max_running * max(1, len(model.routes)))
        in_flight = scheduler.rows_in_flight() if down.death else set()
        effects: list[Effect] = [CloseLink(down.route), CancelTimer(("overdue", down.route))]
        for row in sorted(scheduler.rows.values(), key=lambda row: row.arrival):
            effects += self._reopen(row, "epoch", death=row.key in in_flight)
        return [*effects, *self._pump(model, now_s)]

    def _reopen(self, row: Row, why: str, *, death: bool = False) -> list[Effect]:
        if row.key.peer == PROBE_PEER:
            rebuilt = "the route is being rebuilt"
            return self._probe_ended(row.key.session, rebuilt if why == "epoch" else "the route is short of memory")
        message = Reopen(
            session=row.key.session,
            attempt=row.open.attempt,
            why="preempted" if why == "preempted" else "epoch",
            death=death,
        )
        return [Send(Address(row.key.peer, SESSIONS), message)]

    def _model_gone(self, gone: ModelGone) -> list[Effect]:
        model = self._models.get(gone.model_id)
        if model is None:
            return []
        effects: list[Effect] = []
        for route in list(model.routes) if gone.forget else ():  # no Reopen: who opens again would hear another cause
            effects += [CloseLink(route), CancelTimer(("overdue", route))]
            del model.routes[route]
        for key, (model_id, opening) in list(self._known.items()):
            if model_id == gone.model_id:
                effects += self._end(key, opening, gone.refusal)
        if gone.forget:
            del self._models[gone.model_id]
        return effects

    # ------------------------------------------------------------ steps

    def _pump(self, model: ModelQueue, now_s: float) -> list[Effect]:
        """Admits those who fit and sends as many micro-batches as each route may have in flight."""
        self._admit(model)
        return [effect for route in model.routes.values() for effect in self._send(route.scheduler, now_s)]

    def _send(self, scheduler: RouteScheduler, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        while (composed := scheduler.compose(now_s)) is not None:
            step, batch = composed
            effects.append(SendStep(Step(route=scheduler.route, epoch=scheduler.epoch, step=step, batch=batch)))
        for row in scheduler.preempted:
            effects += self._reopen(row, "preempted")
        scheduler.preempted.clear()
        at_s = scheduler.overdue_s(STEP_LEASE_S, UNMEASURED_LEASE_S)
        key = ("overdue", scheduler.route)
        effects.append(CancelTimer(key) if at_s is None else SetTimer(key, at_s))
        return effects

    def _admit(self, model: ModelQueue) -> None:
        for route in model.routes.values():
            for row in route.scheduler.ended:
                model.waiting.end(row.key)
            route.scheduler.ended.clear()
        while (dispatched := dispatch(model.waiting, model.routes.values(), self.limits.max_running)) is not None:
            waiting, route = dispatched
            model.waiting.begin(waiting)
            route.scheduler.add(
                Row(
                    row=RowId(self._next_row),
                    key=waiting.key,
                    open=waiting.open,
                    arrival=waiting.arrival,
                    generated=len(waiting.open.history) - waiting.open.prompt_tokens,
                    shares=self._faults.may_share(waiting.key),
                )
            )
            self._next_row += 1

    def _route(self, number: RouteId) -> tuple[ModelQueue, ActiveRoute] | None:
        for model in self._models.values():
            if number in model.routes:
                return model, model.routes[number]
        return None

    def _step_back(self, result: StepResult, now_s: float) -> list[Effect]:
        found = self._route(result.route)
        if found is None or found[1].up.epoch != result.epoch:
            self.stale_dropped += 1
            return []
        model, route = found
        scheduler = route.scheduler
        sampled = scheduler.take(result, now_s) if of_the_vocabulary(result, route.up.vocab) else None
        if sampled is None:
            why = f"result of step {result.step} out of turn, or not of its rows"
            return [Send(PLANNER, RouteBroken(route=result.route, epoch=result.epoch, why=why, side="in"))]
        effects: list[Effect] = []
        for peer in dict.fromkeys(row.key.peer for row in sampled.values()):
            own = {index: row for index, row in sampled.items() if row.key.peer == peer}
            effects += self._send_tokens(peer, own, result)
        effects += self._settle_failed(scheduler)
        effects += self._serves(route) if sampled else []
        self.tokens_sent += len(sampled)
        for row in sampled.values():
            if row.finish is not None:
                self._forget(row.key)
        pumped = self._pump(model, now_s)
        steps = [effect for effect in pumped if isinstance(effect, SendStep)]  # first: the stages wait for them
        return [*steps, *effects, *(effect for effect in pumped if not isinstance(effect, SendStep))]

    def _serves(self, route: ActiveRoute) -> list[Effect]:
        """Said once in an epoch."""
        if route.serves:
            return []
        route.serves = True
        return [Tell(PLANNER.actor, RouteServed(model_id=route.up.model_id, epoch=route.up.epoch))]

    def _settle_failed(self, scheduler: RouteScheduler) -> list[Effect]:
        """Rows that the step went wrong for are opened again, or end."""
        effects: list[Effect] = []
        for row, fault in scheduler.failed:
            refusal = self._faults.judge(row, fault)
            effects += self._end(row.key, row.open, refusal) if refusal else self._reopen(row, "preempted")
        scheduler.failed.clear()
        return effects

    def _send_tokens(self, peer: PeerId, sampled: dict[int, Row], result: StepResult) -> list[Effect]:
        """One peer's rows of the result, which stays columns."""
        rows = sampled.values()
        if peer == PROBE_PEER:
            return [effect for row in rows for effect in self._probe_ended(row.key.session)]
        return [Send(Address(peer, SESSIONS), tokens_of(sampled, result))]

    def _overdue(self, number: RouteId, now_s: float) -> list[Effect]:
        found = self._route(number)
        if found is None or not found[1].scheduler.flights:
            return []
        up, scheduler = found[1].up, found[1].scheduler
        late = StepOverdue(route=number, epoch=up.epoch, step=scheduler.flights[0].step, nodes=up.nodes)
        return [Tell(REGISTRY_NAME, late), SetTimer(("overdue", number), now_s + OVERDUE_AGAIN_S)]

    # ------------------------------------------------------------ readiness

    def _ready(self, sender: Address, asked: ReadyRequest, now_s: float) -> list[Effect]:
        """Ready means proven: a token came through lately, or a probe token does now."""
        asked_for = [model for model in self._models.values() if not asked.models or model.model_id in asked.models]
        last_tokens_s = {model.model_id: model.last_token_s() for model in asked_for if model.routes}
        if not last_tokens_s:
            return [ready_told(sender, asked.ask, "no route is up" if self._models else "no model is loaded")]
        model_id = max(last_tokens_s, key=lambda name: last_tokens_s[name])  # the one that has worked most lately
        if now_s - last_tokens_s[model_id] <= READY_FOR_S:
            return [ready_told(sender, asked.ask)]
        if self._probes.join(sender, asked.ask, model_id):
            return []
        key, probe = self._probes.start(sender, asked.ask, model_id)
        return [self._probes.deadline(key, now_s), *self._open(key, probe, now_s)]

    def _probe_ended(self, session: SessionId, reason: str = "") -> list[Effect]:
        self._forget(RowKey(PROBE_PEER, session))
        return self._probes.end(session, reason)
