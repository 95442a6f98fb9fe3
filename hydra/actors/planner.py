"""Who holds which layers. The Planner turns nodes and wishes into routes, and every change of a route into an epoch.

A plan is a value; nothing is patched in place. Each epoch runs through the same four steps, whatever caused it:

    LoadSlice to every stage --all SliceLoaded--> Activate --all Ready--> RouteUp to the Broker
         ^                                                                       |
         +---- a stage is lost, joins anew, reports a break; a rebalance --------+  (RouteDown first)

On a loss it plans again over the survivors at once if that fits; else it waits for a node until the recovery
deadline. A node that joins a cluster with a working route is a spare until the next plan. It knows a model as a
ModelSpec and a list of byte ranges, and memory as numbers; it reads no file (the Library port does).
"""

from collections.abc import Callable
from typing import Literal

import attrs

from hydra.actors import muster, orders
from hydra.actors.facts import (
    FrontendJoined,
    FrontendLost,
    ModelGone,
    ModelKnown,
    ModelStalled,
    NodeJoined,
    NodeLost,
    NodeSuspect,
    RouteDown,
    StepVanished,
    TermRaised,
)
from hydra.actors.jobs import Jobs, node_loads
from hydra.actors.lenders import Lenders
from hydra.actors.machine import CancelTimer, Effect, Event, Received, Send, SetTimer, Tell, TimerFired
from hydra.actors.muster import Muster
from hydra.actors.placement import Placed, Route, pool_size, route_dtype, seats_for
from hydra.actors.planned_model import Phase, PlannedModel
from hydra.actors.split import Terms, check_max_model_len, split_vram
from hydra.actors.wish import (
    Begin,
    Describe,
    Moved,
    NotDescribed,
    Policy,
    SaveState,
    WasDescribed,
    Wish,
    WishFailed,
)
from hydra.protocol.ids import COORDINATOR, ActorName, Address, AskId, Epoch, NodeId, PeerId, RouteId
from hydra.protocol.messages import (
    CancelJob,
    Fenced,
    JobsAsked,
    JobsTold,
    LoadFailed,
    LoadModel,
    LoadProgress,
    ModelsChanged,
    ModelTold,
    NodeLoad,
    Ready,
    Rebalance,
    RouteBroken,
    SliceLoaded,
    UnloadModel,
)
from hydra.protocol.model_name import default_model_id, hub_parts
from hydra.protocol.model_spec import Described, ModelCard, TensorRange
from hydra.protocol.refusal import Refusal, RefusalError

BROKER_NAME = ActorName("broker")
ASKS = ActorName("asks")
EPOCH_BREAKS_MAX = 8  # epochs in a row that never served a token's worth of time; then the model has failed
STEADY_S = 5.0
TRY_AGAIN_S = 5.0
RETRY_AFTER_S = 5.0


@attrs.define(eq=False)
class Planner:
    """Plans models over nodes."""

    term: int
    policy: Policy
    ranges: Callable[[Described, int, int], tuple[TensorRange, ...]]
    results_addr: str
    wall_s: int = 0
    store_addr: str = ""  # where the coordinator lends the files of what it described; empty: it does not
    number: int = attrs.field(default=0, init=False)
    _nodes: dict[NodeId, NodeJoined] = attrs.field(factory=dict, init=False)
    _suspects: set[NodeId] = attrs.field(factory=set, init=False)
    _models: dict[str, PlannedModel] = attrs.field(factory=dict, init=False)
    _frontends: list[PeerId] = attrs.field(factory=list, init=False)
    _muster: Muster = attrs.field(factory=Muster, init=False)
    _next_route: int = attrs.field(default=1, init=False)
    _jobs: Jobs = attrs.field(factory=Jobs, init=False)
    _lenders: Lenders = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._lenders = Lenders(self.store_addr)

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        match event:
            case Received(sender=sender, message=message):
                return self._receive(sender, message, now_s)
            case NodeJoined() as joined:
                return self._joined(joined, now_s)
            case NodeLost(node=node):
                return self._lost(node, now_s)
            case NodeSuspect(node=node, suspect=suspect):
                (self._suspects.add if suspect else self._suspects.discard)(node)
                return [] if suspect else self._plan_waiting(now_s)
            case StepVanished(route=route, epoch=epoch, why=why):
                return self._broken(route, epoch, why, now_s)
            case FrontendJoined(peer=peer):
                self._frontends.append(peer)
                return self._tell_models([peer])
            case FrontendLost(peer=peer):
                self._frontends = [other for other in self._frontends if other != peer]
                return []
            case TermRaised(term=term):
                self.term = term
                return [self._save()]
            case Begin() as begin:
                return self._begin(begin, now_s)
            case WasDescribed(model_path=path, described=described):
                return self._described(path, described, now_s)
            case NotDescribed(model_path=path, refusal=refusal):
                return self._not_described(path, refusal, now_s)
            case TimerFired(key=muster.AWAITED):
                self._muster.forget_former()
                return self._settle_if_complete(now_s) if self._muster.waiting else []
            case TimerFired(key=muster.PATIENCE):
                return self._settle(now_s)
            case TimerFired(key=("again", str(model_id))):
                return self._try_again(model_id, now_s)
            case TimerFired(key=("recovery", str(model_id))):
                return self._give_up(model_id)
            case _:
                raise AssertionError(f"a planner cannot be told {event!r}")

    def _receive(self, sender: Address, message: object, now_s: float) -> list[Effect]:
        match message:
            case SliceLoaded() as loaded:
                return self._slice_loaded(sender.peer, loaded, now_s)
            case Ready(route=route, epoch=epoch):
                return self._stage_ready(sender.peer, route, epoch, now_s)
            case LoadFailed(route=route, epoch=epoch, refusal=refusal):
                return self._load_failed(sender.peer, route, epoch, refusal, now_s)
            case RouteBroken(route=route, epoch=epoch, why=why):
                theirs = sender.peer == COORDINATOR or self._placed(sender.peer, route, epoch) is not None
                return self._broken(route, epoch, why, now_s) if theirs else []
            case LoadProgress() as progress:
                return self._progressed(sender.peer, progress)
            case Fenced():
                return []  # kept for the log: the stage's thread has let go of the former epoch
            case LoadModel() as ask:
                return self._load(sender, ask)
            case UnloadModel(ask=ask_id, model_id=model_id):
                return self._unload(sender, ask_id, model_id)
            case Rebalance(ask=ask_id):
                return self._rebalance(sender, ask_id, now_s)
            case JobsAsked(ask=ask_id, job=job):
                return self._tell_jobs(sender, ask_id, job)
            case CancelJob(ask=ask_id, job=job):
                return self._cancel(sender, ask_id, job)
            case _:
                raise AssertionError(f"a planner cannot be told {message!r}")

    # ------------------------------------------------------------ what others may read

    def cards(self) -> tuple[ModelCard, ...]:
        """The models as frontends see them; only those whose files were understood."""
        cards = (model.card(self.policy.max_model_len) for model in self._models.values())
        return tuple(card for card in cards if card is not None)

    def models(self) -> tuple[tuple[str, Phase, Route | None], ...]:
        """(model id, phase, route) of every model, for the status page."""
        return tuple((model.model_id, model.phase, model.route) for model in self._models.values())

    # ------------------------------------------------------------ wishes

    def _begin(self, begin: Begin, now_s: float) -> list[Effect]:
        effects = self._muster.begin(begin, now_s)
        for wish in begin.wishes:
            effects += self._want(wish, None)
        for model in self._models.values():
            model.kept = True
        return [self._save(), *effects]

    def _want(self, wish: Wish, asker: tuple[Address, AskId] | None) -> list[Effect]:
        model_id = wish.model_id or default_model_id(wish.model_path)
        job = self._jobs.begin(self.term, model_id, wish.model_path)
        model = PlannedModel(wish, model_id, job, created_s=self.wall_s)
        if asker is not None:
            model.asks.append(asker)
        self._models[model_id] = model
        known = ModelKnown(model_id=model_id, max_model_len=0)  # so that sessions of a former life may wait already
        return [Tell(BROKER_NAME, known), Describe(wish.place)]

    def _load(self, sender: Address, ask: LoadModel) -> list[Effect]:
        wish = Wish(ask.model_path, ask.model_id, ask.dtype)
        model_id = wish.model_id or default_model_id(wish.model_path)
        if model_id in self._models and self._models[model_id].phase != "failed":
            message = f"a model {model_id!r} is there already; unload it first, or give another model_id"
            return self._told(sender, ask.ask, refusal=Refusal(code="invalid_value", message=message, param="model_id"))
        effects = self._want(wish, (sender, ask.ask) if ask.wait else None)
        model = self._models[model_id]
        model.total_layers = ask.total_layers
        told = [] if ask.wait else self._told(sender, ask.ask, model_id=model_id, state="loading", job=model.job)
        return [self._save(), *told, *effects]

    def _described(self, path: str, described: Described, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for model in list(self._models.values()):
            if model.phase != "describing" or model.wish.place != path:
                continue
            layers = described.spec.n_layers
            if model.total_layers not in (None, layers):
                message = f"total_layers is {model.total_layers}, but the model's config says {layers}"
                refusal = Refusal(code="invalid_value", message=message, param="total_layers")
                effects += self._fail(model, refusal)
                continue
            try:
                check_max_model_len(described.spec, self.policy.max_model_len)
            except RefusalError as why:
                effects += self._endure(model, why.refusal, now_s)
                continue
            model.described, model.phase = described, "waiting"
            if hub_parts(described.model_path) is not None:
                model.wish = attrs.evolve(model.wish, pinned=described.model_path)
            known = ModelKnown(model_id=model.model_id, max_model_len=model.context(self.policy.max_model_len))
            effects.append(Tell(BROKER_NAME, known))
            effects += [self._save(), *self._announce(), *self._plan(model, now_s)]
        return effects

    def _not_described(self, path: str, refusal: Refusal, now_s: float) -> list[Effect]:
        wanted = [m for m in self._models.values() if m.phase == "describing" and m.wish.place == path]
        return [effect for model in wanted for effect in self._endure(model, refusal, now_s)]

    def _endure(self, model: PlannedModel, refusal: Refusal, now_s: float) -> list[Effect]:
        """A model that is wanted whatever happens, or that has served, is tried again; any other has failed."""
        if model.asks or not (model.kept or model.served):
            return self._fail(model, refusal)
        again = SetTimer(("again", model.model_id), now_s + TRY_AGAIN_S)
        return [*self._wait(model, refusal, now_s), again]

    def _try_again(self, model_id: str, now_s: float) -> list[Effect]:
        model = self._models.get(model_id)
        if model is None or model.phase not in ("waiting", "describing"):
            return []
        if model.described is None:
            model.phase = "describing"
            return [Describe(model.wish.place)]
        return self._plan(model, now_s)

    def _fail(self, model: PlannedModel, refusal: Refusal) -> list[Effect]:
        """The wish cannot be granted: whoever asked is told, and nothing of the model stays (but see `_endure`)."""
        model.phase, model.why = "failed", refusal.message
        self._jobs.end(model.job, refusal, model.route)
        effects: list[Effect] = [Tell(BROKER_NAME, ModelGone(model_id=model.model_id, refusal=refusal, forget=True))]
        effects += self._drop(model)
        effects += model.answer(refusal=refusal)
        del self._models[model.model_id]
        return [*effects, self._save(), *self._announce()]

    def _unload(self, sender: Address, ask: AskId, model_id: str) -> list[Effect]:
        model = self._models.get(model_id)
        if model is None:
            message = f"no model {model_id!r} is loaded"
            refusal = Refusal(code="model_not_found", message=message, param="model_id")
            return self._told(sender, ask, refusal=refusal)
        model.kept = False
        gone = Refusal(code="model_not_found", message=f"the model {model_id!r} was unloaded")
        return [*self._fail(model, gone), *self._told(sender, ask, model_id=model_id, state="unloaded")]

    def _tell_jobs(self, sender: Address, ask: AskId, job: str | None) -> list[Effect]:
        routes = {model.job: model.route for model in self._models.values()}
        try:
            told = self._jobs.told(job)
        except RefusalError as why:
            return [Send(sender, JobsTold(ask=ask, refusal=why.refusal))]
        jobs = tuple(
            attrs.evolve(one, nodes=node_loads(routes.get(one.job))) if one.state == "loading" else one for one in told
        )
        return [Send(sender, JobsTold(ask=ask, jobs=jobs))]

    def _cancel(self, sender: Address, ask: AskId, job: str) -> list[Effect]:
        """Stages that are told to drop their slice stop fetching; their caches keep what has come."""
        model = next((model for model in self._models.values() if model.job == job), None)
        effects: list[Effect] = []
        if model is not None and not model.served:
            model.kept = False
            message = f"The loading of {model.model_id!r} was called off; what was fetched is kept."
            effects = self._fail(model, Refusal(code="cancelled", message=message))
        return [*effects, *self._tell_jobs(sender, ask, job)]

    def _rebalance(self, sender: Address, ask: AskId, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for model in self._models.values():
            if model.phase in ("ready", "waiting"):
                effects += self._plan(model, now_s)
        state: Literal["rebalancing", "unchanged"] = "rebalancing" if effects else "unchanged"
        return [*effects, *self._told(sender, ask, state=state)]

    # ------------------------------------------------------------ nodes

    def _joined(self, joined: NodeJoined, now_s: float) -> list[Effect]:
        self._nodes[joined.node] = joined
        self._lenders.holds(joined.node, (held.fingerprint for held in joined.held))
        self._suspects.discard(joined.node)
        effects = self._muster.joined(now_s)
        more = self._settle_if_complete(now_s) if self._muster.waiting else self._plan_waiting(now_s)
        return [*effects, *more]

    def _settle_if_complete(self, now_s: float) -> list[Effect]:
        return self._settle(now_s) if self._muster.complete(self._nodes) else []

    def _plan_waiting(self, now_s: float) -> list[Effect]:
        waiting = [m for m in self._models.values() if m.phase == "waiting"]
        return [effect for model in waiting for effect in self._plan(model, now_s)]

    def _settle(self, now_s: float) -> list[Effect]:
        return [*self._muster.end(self._nodes), *self._plan_waiting(now_s)]

    def _lost(self, node: NodeId, now_s: float) -> list[Effect]:
        self._nodes.pop(node, None)
        self._lenders.forget(node)
        self._suspects.discard(node)
        effects: list[Effect] = []
        for model in list(self._models.values()):
            if model.route is not None and node in model.route.nodes():
                effects += self._down(model, death=True)
                effects += self._plan(model, now_s)
        return effects

    def _broken(self, route: RouteId, epoch: Epoch, why: str, now_s: float) -> list[Effect]:
        for model in list(self._models.values()):
            if model.route is not None and model.route.route == route and model.route.epoch == epoch:
                model.why = why
                model.breaks = 0 if now_s - model.up_since_s > STEADY_S and model.phase == "ready" else model.breaks + 1
                if model.breaks > EPOCH_BREAKS_MAX:
                    message = f"{model.breaks} epochs in a row broke; the last one because: {why}"
                    model.breaks = 0
                    return [
                        *self._down(model, death=False),
                        *self._endure(model, Refusal(code="internal_error", message=message), now_s),
                    ]
                return [*self._down(model, death=False), *self._plan(model, now_s)]
        return []

    # ------------------------------------------------------------ epochs

    def _plan(self, model: PlannedModel, now_s: float) -> list[Effect]:
        """A new epoch over the nodes present now, or a wait for better times."""
        if self._muster.waiting or model.described is None:
            return []
        described = model.described
        nodes = {name: node for name, node in self._nodes.items() if name not in self._suspects}
        try:
            dtype = route_dtype(described.spec, model.wish.dtype or self.policy.dtype, list(nodes.values()))
            terms = Terms(
                dtype=dtype,
                reserve_bytes=self.policy.reserve_bytes,
                kv_fraction=self.policy.kv_fraction,
                context_tokens=self.policy.max_model_len,
                block_size=self.policy.block_size,
            )
            taken = {m.model_id: m.route for m in self._models.values() if m is not model and m.route is not None}
            seats = seats_for(described.spec, dtype, nodes, held=model.route, others=list(taken.values()))
            shares = split_vram(described.spec, seats, terms)
        except RefusalError as why:
            return [] if model.phase == "ready" else self._wait(model, why.refusal, now_s)  # what works goes on
        effects = self._down(model, death=False)
        self.number += 1
        old = model.route
        route = Route(
            route=old.route if old else RouteId(self._next_route),
            epoch=Epoch(self.term, self.number),
            dtype=dtype,
            stages=[Placed(share, self._nodes[share.node]) for share in shares],
        )
        self._next_route += 0 if old else 1
        model.route, model.phase, model.recovering = route, "loading", False
        going = ModelStalled(model_id=model.model_id, refusal=None)
        effects += [Tell(BROKER_NAME, going), CancelTimer(("recovery", model.model_id)), self._save()]
        dropped = [name for name in (old.nodes() if old else ()) if name not in route.nodes() and name in self._nodes]
        effects += orders.drop(route.route, route.epoch, [self._nodes[name] for name in dropped])
        effects += [self._order(described, route, placed) for placed in route.stages]
        return [*effects, *self._announce()]

    def _order(self, described: Described, route: Route, placed: Placed) -> Effect:
        share, to = placed.share, placed.share.node
        others = [node for name, node in self._nodes.items() if name != to and name not in self._suspects]
        return orders.load(
            described,
            route,
            placed,
            tensors=self.ranges(described, share.first_layer, share.end_layer),
            sources=self._lenders.sources(described, others),
            block_size=self.policy.block_size,
        )

    def _progressed(self, peer: PeerId, said: LoadProgress) -> list[Effect]:
        found = self._placed(peer, said.route, said.epoch)
        if found is None:
            return []
        model, placed = found
        placed.bytes_done, placed.bytes_total, placed.phase = said.bytes_done, said.bytes_total, said.phase
        load = NodeLoad(
            node_id=placed.share.node, state=said.phase, bytes_done=said.bytes_done, bytes_total=said.bytes_total
        )
        return [Moved(model.model_id, load)]

    def _slice_loaded(self, peer: PeerId, loaded: SliceLoaded, now_s: float) -> list[Effect]:
        found = self._placed(peer, loaded.route, loaded.epoch)
        if found is None:
            return []
        model, placed = found
        placed.loaded = loaded
        route = model.route
        assert route is not None and model.described is not None
        self._lenders.holds(placed.share.node, (model.described.spec.fingerprint,))
        if model.phase != "loading" or any(stage.loaded is None for stage in route.stages):
            return []
        model.phase = "activating"
        try:
            route.kv_blocks, route.max_model_len = pool_size(
                model.described.spec, route, self.policy.max_model_len, self.policy.block_size, self.policy.running_max
            )
        except RefusalError as why:
            return self._wait(model, why.refusal, now_s)
        return orders.activate(route, self.results_addr)

    def _stage_ready(self, peer: PeerId, route_id: RouteId, epoch: Epoch, now_s: float) -> list[Effect]:
        found = self._placed(peer, route_id, epoch)
        if found is None:
            return []
        model, placed = found
        placed.ready = True
        route = model.route
        assert route is not None and model.described is not None
        if model.phase != "activating" or not all(stage.ready for stage in route.stages):
            return []
        model.phase, model.up_since_s, model.why, model.served = "ready", now_s, "", True
        self._jobs.end(model.job, None, route)
        up = orders.up(model.model_id, model.described, route, self.policy.block_size)
        return [Tell(BROKER_NAME, up), *self._announce(), *model.answer(state="ready")]

    def _load_failed(self, peer: PeerId, route: RouteId, epoch: Epoch, refusal: Refusal, now_s: float) -> list[Effect]:
        found = self._placed(peer, route, epoch)
        if found is None or found[0].phase not in ("loading", "activating"):
            return []  # a loss ended this epoch already
        return self._endure(found[0], refusal, now_s)

    def _down(self, model: PlannedModel, *, death: bool) -> list[Effect]:
        if model.route is None or model.phase != "ready":
            return []
        model.phase = "waiting"
        return [Tell(BROKER_NAME, RouteDown(model_id=model.model_id, route=model.route.route, death=death))]

    def _wait(self, model: PlannedModel, refusal: Refusal, now_s: float) -> list[Effect]:
        """There is no plan now. A first load is refused; a model that served waits for a node until the deadline."""
        effects = self._down(model, death=False)
        if model.asks and refusal.code != "no_workers":
            return [*effects, *self._fail(model, refusal)]
        if model.kept and not model.served and refusal.code != "no_workers":
            effects.append(WishFailed(refusal))  # neither memory nor a setting that nobody can keep comes by waiting
        model.phase, model.why = "waiting", refusal.message
        stalled = attrs.evolve(refusal, code="no_workers", retry_after_s=refusal.retry_after_s or RETRY_AFTER_S)
        effects.append(Tell(BROKER_NAME, ModelStalled(model_id=model.model_id, refusal=stalled)))
        if not model.recovering:
            model.recovering = True
            effects.append(SetTimer(("recovery", model.model_id), now_s + self.policy.recovery_deadline_s))
        return [*effects, *self._announce()]

    def _give_up(self, model_id: str) -> list[Effect]:
        """The recovery deadline passed. Whoever waits is told; the model stays wanted."""
        model = self._models.get(model_id)
        if model is None or model.phase != "waiting":
            return []
        model.recovering = False
        message = f"no plan fits within the recovery deadline: {model.why}"
        refusal = Refusal(code="recovery_deadline", message=message, retry_after_s=10.0)
        gone = ModelGone(model_id=model_id, refusal=refusal, forget=False)
        return [Tell(BROKER_NAME, gone), *model.answer(refusal=refusal)]

    def _drop(self, model: PlannedModel) -> list[Effect]:
        if model.route is None:
            return []
        self.number += 1
        there = [stage.node for stage in model.route.stages if self._nodes.get(stage.share.node) is stage.node]
        return orders.drop(model.route.route, Epoch(self.term, self.number), there)

    # ------------------------------------------------------------ small helpers

    def _placed(self, peer: PeerId, route: RouteId, epoch: Epoch) -> tuple[PlannedModel, Placed] | None:
        for model in self._models.values():
            if model.route is not None and model.route.route == route and model.route.epoch == epoch:
                for placed in model.route.stages:
                    if placed.node.peer == peer:
                        return model, placed
        return None

    def _save(self) -> SaveState:
        nodes = dict.fromkeys(name for m in self._models.values() if m.route for name in m.route.nodes())
        wishes = tuple(m.wish for m in self._models.values() if m.phase != "failed")
        return SaveState(self.term, wishes, tuple(nodes))

    def _announce(self) -> list[Effect]:
        return self._tell_models(self._frontends)

    def _tell_models(self, peers: list[PeerId]) -> list[Effect]:
        """Nothing is told while a wish of a former life is still being read: its model would seem to be gone."""
        if any(model.kept and model.phase == "describing" for model in self._models.values()):
            return []
        return [Send(Address(peer, ASKS), ModelsChanged(models=self.cards())) for peer in peers]

    def _told(
        self,
        to: Address,
        ask: AskId,
        *,
        model_id: str | None = None,
        state: Literal["loading", "unloaded", "rebalancing", "unchanged"] | None = None,
        refusal: Refusal | None = None,
        job: str | None = None,
    ) -> list[Effect]:
        return [Send(to, ModelTold(ask=ask, model_id=model_id, state=state, refusal=refusal, job=job))]
