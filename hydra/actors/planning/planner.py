"""Who holds which layers. The Planner turns nodes and wishes into routes, and every change of a route into an epoch.

A plan is a value; nothing is patched in place. Each epoch runs through the same four steps, whatever caused it:

    LoadSlice to every stage --all SliceLoaded--> Activate --all Ready--> RouteUp to the Broker
         ^                                                                       |
         +---- a stage is lost, joins anew, reports a break; a rebalance --------+  (RouteDown first)

On a loss it plans again over the survivors at once if that fits; else it waits for a node until the recovery
deadline. A node that joins a cluster with a working route is a spare until the next plan. Every hop of a plan is
dialled before the plan begins (`reach`); what works goes on meanwhile. It knows a model as a ModelSpec and a list of
byte ranges, and memory as numbers; it reads no file (the Library port does).
"""

from collections.abc import Callable, Container
from typing import Literal

import attrs

from hydra.actors.core.facts import (
    FrontendJoined,
    FrontendLost,
    ModelGone,
    ModelKnown,
    ModelStalled,
    NodeJoined,
    NodeLost,
    NodeSuspect,
    RouteDown,
    RouteServed,
    StepVanished,
    TermRaised,
    Undelivered,
)
from hydra.actors.core.machine import CancelTimer, Effect, Event, Received, Send, SetTimer, Tell, TimerFired
from hydra.actors.core.names import ASKS, BROKER_NAME, MEMBER
from hydra.actors.planning import stage_orders, startup_quorum
from hydra.actors.planning.desired_model import (
    CheckSource,
    Describe,
    DesiredModel,
    DesiredModelFailed,
    LoadMoved,
    ModelNoted,
    NodeNoted,
    NotDescribed,
    Policy,
    Recover,
    SaveState,
    SourceChecked,
    WasDescribed,
)
from hydra.actors.planning.draft import Draft, Drafter, Wanted
from hydra.actors.planning.load_jobs import Jobs, node_loads
from hydra.actors.planning.outage import MOVING_S, Outage
from hydra.actors.planning.placement import Route, StagePlacement, pool_size
from hydra.actors.planning.planned_model import Phase, PlannedModel
from hydra.actors.planning.reach import HERE, REDIAL, DialledOut, Reach
from hydra.actors.planning.split import check_max_model_len
from hydra.actors.planning.startup_quorum import StartupQuorum
from hydra.actors.planning.weight_sources import WeightSources
from hydra.protocol.ids import COORDINATOR, Address, AskId, Epoch, NodeId, PeerId, RouteId
from hydra.protocol.messages.models import (
    CancelJob,
    JobsReply,
    JobsRequest,
    LoadModel,
    ModelReply,
    ModelsChanged,
    NodeLoad,
    Rebalance,
    UnloadModel,
)
from hydra.protocol.messages.plans import (
    Dialled,
    Fenced,
    LoadFailed,
    LoadProgress,
    LoadSlice,
    ReachReport,
    Ready,
    RouteBroken,
    SliceLoaded,
    Unanswered,
)
from hydra.protocol.model.model_name import default_model_id, hub_parts
from hydra.protocol.model.model_spec import Described, ModelCard, TensorRange
from hydra.protocol.refusal import Refusal, RefusalError

TRY_AGAIN_S = 5.0
RETRY_AFTER_S = 5.0
LOAD_SILENT_S = 90.0  # workers speak every few seconds while bytes come
FIRST_SILENT_S = 360.0  # of what has never served and nobody else could do: longer than any source is waited for
ACTIVATE_SILENT_S = 300.0  # kernels may be compiled and graphs captured, of which nobody speaks
_SILENT_S: dict[Phase, float] = {"loading": LOAD_SILENT_S, "activating": ACTIVATE_SILENT_S}


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
    _quorum: StartupQuorum = attrs.field(factory=StartupQuorum, init=False)
    _next_route: int = attrs.field(default=1, init=False)
    _jobs: Jobs = attrs.field(factory=Jobs, init=False)
    _weight_sources: WeightSources = attrs.field(init=False)
    _reach: Reach = attrs.field(init=False)
    _drafter: Drafter = attrs.field(init=False)
    _mustered: set[NodeId] = attrs.field(factory=set, init=False)  # those that could be counted on, once

    def __attrs_post_init__(self) -> None:
        self._weight_sources = WeightSources(self.store_addr)
        self._reach = Reach(self.results_addr, self.store_addr)
        self._drafter = Drafter(self.policy, self._reach)

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
            case StepVanished(route=route, epoch=epoch, why=why, stage_index=index):
                return self._vanished(route, epoch, why, index, now_s)
            case RouteServed(model_id=model_id, epoch=epoch):
                return self._served(model_id, epoch)
            case FrontendJoined(peer=peer):
                self._frontends.append(peer)
                return self._tell_models([peer])
            case FrontendLost(peer=peer):
                self._frontends = [other for other in self._frontends if other != peer]
                return []
            case TermRaised(term=term):
                self.term = term
                return [self._save()]
            case Recover() as begin:
                return self._begin(begin, now_s)
            case WasDescribed(model_path=path, described=described):
                return self._described(path, described, now_s)
            case NotDescribed(model_path=path, refusal=refusal):
                return self._not_described(path, refusal, now_s)
            case DialledOut(ask=ask_id, unanswered=unanswered):
                return self._tried(self._reach.answered(ask_id, HERE, unanswered, now_s), now_s)
            case TimerFired(key=("dial", int(ask_id), str(source))):
                return self._tried(self._reach.silent(AskId(ask_id), NodeId(source), now_s), now_s)
            case TimerFired(key=key) if key == REDIAL:
                return self._tried(self._reach.redial(now_s), now_s)
            case SourceChecked() as checked:
                return self._source_checked(checked, now_s)
            case Undelivered() as undelivered:
                return self._undelivered(undelivered, now_s)
            case TimerFired(key=startup_quorum.AWAITED):
                self._quorum.forget_former()
                return self._settle_if_complete(now_s) if self._quorum.waiting else []
            case TimerFired(key=startup_quorum.PATIENCE):
                return self._settle(now_s)
            case TimerFired(key=("again", str(model_id))):
                return self._try_again(model_id, now_s)
            case TimerFired(key=("silence", str(model_id))):
                return self._silence(model_id, now_s)
            case TimerFired(key=("recovery", str(model_id))):
                return self._give_up(model_id, now_s)
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
            case RouteBroken() as broken:
                return self._broken(sender.peer, broken, now_s)
            case Dialled(ask=ask_id, unanswered=unanswered):
                return self._dialled(sender.peer, ask_id, unanswered, now_s)
            case LoadProgress() as progress:
                return self._progressed(sender.peer, progress, now_s)
            case Fenced(route=route, epoch=epoch):
                return self._fenced(sender.peer, route, epoch, now_s)
            case LoadModel() as ask:
                return self._load(sender, ask)
            case UnloadModel(ask=ask_id, model_id=model_id):
                return self._unload(sender, ask_id, model_id)
            case Rebalance(ask=ask_id):
                return self._rebalance(sender, ask_id, now_s)
            case JobsRequest(ask=ask_id, job=job):
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

    def fault_of(self, node: NodeId, now_s: float) -> str:
        """Why no plan may have this node now, for people; empty: one may."""
        return self._reach.fault_of(node, now_s) if node in self._nodes else ""

    def is_tried(self, node: NodeId) -> bool:
        """Whether the ways to it and from it have been dialled, with whatever result."""
        return self._reach.tried(node)

    def models(self) -> tuple[tuple[str, Phase, Route | None], ...]:
        """(model id, phase, route) of every model, for the status page."""
        return tuple((model.model_id, model.phase, model.route) for model in self._models.values())

    # ------------------------------------------------------------ wishes

    def _begin(self, begin: Recover, now_s: float) -> list[Effect]:
        effects = self._quorum.begin(begin, now_s)
        for desired in begin.desired:
            effects += self._want(desired, None)
        for model in self._models.values():
            model.kept = True
        return [self._save(), *effects]

    def _want(self, desired: DesiredModel, asker: tuple[Address, AskId] | None) -> list[Effect]:
        model_id = desired.model_id or default_model_id(desired.model_path)
        job = self._jobs.begin(self.term, model_id, desired.model_path)
        model = PlannedModel(desired, model_id, job, created_s=self.wall_s)
        if asker is not None:
            model.asks.append(asker)
        self._models[model_id] = model
        known = ModelKnown(model_id=model_id, max_model_len=0)  # so that sessions of a former life may wait already
        return [Tell(BROKER_NAME, known), Describe(desired.place)]

    def _load(self, sender: Address, ask: LoadModel) -> list[Effect]:
        desired = DesiredModel(ask.model_path, ask.model_id, ask.dtype)
        model_id = desired.model_id or default_model_id(desired.model_path)
        if model_id in self._models and self._models[model_id].phase != "failed":
            message = f"a model {model_id!r} is there already; unload it first, or give another model_id"
            return self._told(sender, ask.ask, refusal=Refusal(code="invalid_value", message=message, param="model_id"))
        effects = self._want(desired, (sender, ask.ask) if ask.wait else None)
        model = self._models[model_id]
        model.total_layers = ask.total_layers
        told = [] if ask.wait else self._told(sender, ask.ask, model_id=model_id, state="loading", job=model.job)
        return [self._save(), *told, *effects]

    def _described(self, path: str, described: Described, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for model in list(self._models.values()):
            if model.phase != "describing" or model.desired.place != path:
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
                effects += self._not_planned(model, why.refusal, now_s)
                continue
            model.described, model.phase = described, "waiting"
            if hub_parts(described.model_path) is not None:
                model.desired = attrs.evolve(model.desired, pinned=described.model_path)
            known = ModelKnown(model_id=model.model_id, max_model_len=model.context(self.policy.max_model_len))
            effects.append(Tell(BROKER_NAME, known))
            effects += [self._save(), *self._announce(), *self._plan(model, now_s)]
        return effects

    def _not_described(self, path: str, refusal: Refusal, now_s: float) -> list[Effect]:
        wanted = [m for m in self._models.values() if m.phase == "describing" and m.desired.place == path]
        return [effect for model in wanted for effect in self._not_planned(model, refusal, now_s)]

    def _not_planned(self, model: PlannedModel, refusal: Refusal, now_s: float) -> list[Effect]:
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
            return [Describe(model.desired.place)]
        return self._plan(model, now_s)

    def _fail(self, model: PlannedModel, refusal: Refusal) -> list[Effect]:
        """The model cannot be served: who asked for it is told, and nothing of it stays (but see `_not_planned`)."""
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
            return [Send(sender, JobsReply(ask=ask, refusal=why.refusal))]
        jobs = tuple(
            attrs.evolve(one, nodes=node_loads(routes.get(one.job))) if one.state == "loading" else one for one in told
        )
        return [Send(sender, JobsReply(ask=ask, jobs=jobs))]

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
        """What works goes on until all that the new plan needs is known to be there: hops, and bytes that move."""
        effects: list[Effect] = []
        for model in self._models.values():
            if model.phase == "waiting":
                effects += self._plan(model, now_s)
            elif model.phase == "ready" and model.described is not None:
                try:
                    draft = self._draft(model, now_s)
                except RefusalError:
                    continue
                check = CheckSource(model.model_id, model.described)
                effects += [check] if draft.moves else self._plan(model, now_s)
        state: Literal["rebalancing", "unchanged"] = "rebalancing" if effects else "unchanged"
        return [*effects, *self._told(sender, ask, state=state)]

    def _source_checked(self, checked: SourceChecked, now_s: float) -> list[Effect]:
        """Held bytes are enough for what works; a new split whose bytes cannot be had would only take it down."""
        model = self._models.get(checked.model_id)
        if model is None or model.phase != "ready":
            return []
        if checked.fault:
            return [
                ModelNoted(model.model_id, f"its layers stay where they are, since none can be read: {checked.fault}")
            ]
        return self._plan(model, now_s)

    # ------------------------------------------------------------ nodes

    def _joined(self, joined: NodeJoined, now_s: float) -> list[Effect]:
        """It counts as soon as the ways to it and from it have been tried."""
        self._nodes[joined.node] = joined
        self._weight_sources.holds(joined.node, (held.fingerprint for held in joined.held))
        self._suspects.discard(joined.node)
        self._mustered.discard(joined.node)
        return self._reach.joined(joined, now_s)

    def _dialled(self, peer: PeerId, ask: AskId, unanswered: tuple[Unanswered, ...], now_s: float) -> list[Effect]:
        source = next((name for name, node in self._nodes.items() if node.peer == peer), None)
        if source is None:
            return []
        return self._tried(self._reach.answered(ask, source, unanswered, now_s), now_s)

    def _tried(self, effects: list[Effect], now_s: float) -> list[Effect]:
        """More is known of who can reach whom: those that were waited for may be here, and plans may be possible."""
        effects = [*effects, *self._note_reach(now_s)]
        for name in self._nodes:
            if name not in self._mustered and self._reach.tried(name) and not self._reach.fault_of(name, now_s):
                self._mustered.add(name)
                effects += [*self._quorum.joined(now_s), *self._relieve(now_s)]
        return [*effects, *(self._settle_if_complete(now_s) if self._quorum.waiting else self._plan_waiting(now_s))]

    def _relieve(self, now_s: float) -> list[Effect]:
        """Somebody has come: what is being made ready with nodes that failed at it before may be done without them."""
        effects: list[Effect] = []
        for model in self._models.values():
            if model.phase not in _SILENT_S or model.route is None:
                continue
            shaky = self._reach.shaky(now_s).intersection(model.route.nodes())
            if shaky and self._does_without(model, shaky, now_s):
                effects += [*self._down(model, now_s, death=False), *self._plan(model, now_s)]
        return effects

    def _note_reach(self, now_s: float) -> list[Effect]:
        """Says at both ends that a node cannot be used, or can be again."""
        effects: list[Effect] = []
        for node, fault in self._reach.news(now_s):
            told = ReachReport(generation=node.generation, fault=fault)
            effects += [NodeNoted(node.node, fault), Send(Address(node.peer, MEMBER), told)]
        return effects

    def _settle_if_complete(self, now_s: float) -> list[Effect]:
        present = [name for name in self._nodes if name in self._mustered]
        return self._settle(now_s) if self._quorum.complete(present) else []

    def _plan_waiting(self, now_s: float) -> list[Effect]:
        waiting = [m for m in self._models.values() if m.phase == "waiting" or (m.phase == "ready" and m.dialling)]
        return [effect for model in waiting for effect in self._plan(model, now_s)]

    def _settle(self, now_s: float) -> list[Effect]:
        present = [name for name in self._nodes if name in self._mustered]
        return [*self._quorum.end(present), *self._plan_waiting(now_s)]

    def _lost(self, node: NodeId, now_s: float) -> list[Effect]:
        self._nodes.pop(node, None)
        self._weight_sources.forget(node)
        self._reach.lost(node)
        self._suspects.discard(node)
        self._mustered.discard(node)
        effects: list[Effect] = []
        for model in list(self._models.values()):
            if model.route is not None and node in model.route.nodes():
                if model.phase in ("loading", "activating"):
                    effects += self._blame(node, node, "lost while it was made ready", now_s)
                effects += self._down(model, now_s, death=True)
                effects += self._plan(model, now_s)
        return effects

    def _vanished(self, route: RouteId, epoch: Epoch, why: str, stage_index: int, now_s: float) -> list[Effect]:
        model = self._model_of(route, epoch)
        return [] if model is None else self._break(model, stage_index, why, now_s)

    def _broken(self, peer: PeerId, broken: RouteBroken, now_s: float) -> list[Effect]:
        """Only the stages of an epoch, and the Broker in this house, may end it."""
        model = self._model_of(broken.route, broken.epoch)
        if model is None or model.route is None:
            return []
        peers = [placement.node.peer for placement in model.route.stages]
        if peer == COORDINATOR:
            return self._break(model, len(peers) if broken.side == "in" else 0, broken.why, now_s)
        if peer not in peers:
            return []
        return self._break(model, peers.index(peer) + (broken.side == "out"), broken.why, now_s)

    def _break(self, model: PlannedModel, link: int, why: str, now_s: float) -> list[Effect]:
        """An epoch cannot go on, because of the link towards its stage `link` (the last one leads to the results)."""
        if model.route is None or model.phase not in ("ready", "activating"):
            return []
        ends = [HERE, *model.route.nodes(), HERE]
        model.why = why
        effects = self._blame(ends[link], ends[link + 1], why, now_s)
        return [*effects, *self._down(model, now_s, death=False), *self._plan(model, now_s)]

    def _blame(
        self, source: NodeId, target: NodeId, why: str, now_s: float, *, at_least_s: float = 0.0
    ) -> list[Effect]:
        quarantine_s = self._reach.broke(source, target, now_s, at_least_s=at_least_s)
        ends = " -> ".join(end or "coordinator" for end in dict.fromkeys((source, target)))
        rest = f"; in quarantine for {quarantine_s:.0f} s" if quarantine_s else ""
        noted = [NodeNoted(target or source, f"{ends}: {why}{rest}")]
        return [*noted, *self._reach.after_break(source, target, now_s), *self._note_reach(now_s)]

    # ------------------------------------------------------------ epochs

    def _plan(self, model: PlannedModel, now_s: float) -> list[Effect]:
        """A new epoch over the nodes present now; or their dialling first; or a wait for better times."""
        if self._quorum.waiting or model.described is None:
            return []
        model.dialling = False
        try:
            draft = self._draft(model, now_s)
        except RefusalError as why:
            if model.phase != "ready":
                return self._wait(model, why.refusal, now_s)
            return []  # what works goes on
        untried = self._reach.untried([share.node for share in draft.shares], now_s)
        if untried:
            model.dialling = True
            return self._reach.dial(untried, now_s)
        return self._begin_epoch(model, model.described, draft, now_s)

    def _wanted(self, model: PlannedModel) -> Wanted:
        """What a plan of this model has to keep to."""
        assert model.described is not None
        return Wanted(
            spec=model.described.spec,
            dtype=model.desired.dtype or self.policy.dtype,
            held=model.route,
            others=tuple(m.route for m in self._models.values() if m is not model and m.route is not None),
        )

    def _draft(self, model: PlannedModel, now_s: float, without: Container[NodeId] = ()) -> Draft:
        """Over the nodes that have not missed beats, or RefusalError."""
        heard = {name: node for name, node in self._nodes.items() if name not in self._suspects}
        return self._drafter.draft(self._wanted(model), heard, now_s, without)

    def _begin_epoch(self, model: PlannedModel, described: Described, draft: Draft, now_s: float) -> list[Effect]:
        effects = self._down(model, now_s, death=False)
        self.number += 1
        old = model.route
        route = Route(
            route=old.route if old else RouteId(self._next_route),
            epoch=Epoch(self.term, self.number),
            dtype=draft.dtype,
            stages=[StagePlacement(share, self._nodes[share.node], heard_s=now_s) for share in draft.shares],
        )
        self._next_route += 0 if old else 1
        model.route, model.phase = route, "loading"
        effects += [Tell(BROKER_NAME, ModelStalled(model_id=model.model_id, refusal=None)), self._save()]
        if not model.served:
            model.outage = None
            effects.append(CancelTimer(("recovery", model.model_id)))
        effects.append(SetTimer(("silence", model.model_id), now_s + _SILENT_S[model.phase]))
        dropped = [name for name in (old.nodes() if old else ()) if name not in route.nodes() and name in self._nodes]
        effects += stage_orders.drop(route.route, route.epoch, [self._nodes[name] for name in dropped])
        effects += [self._order(described, route, placement) for placement in route.stages]
        return [*effects, *self._announce()]

    def _order(self, described: Described, route: Route, placement: StagePlacement) -> Effect:
        share, to = placement.share, placement.share.node
        others = [node for name, node in self._nodes.items() if name != to and name not in self._suspects]
        return stage_orders.load(
            described,
            route,
            placement,
            tensors=self.ranges(described, share.first_layer, share.end_layer),
            sources=self._weight_sources.sources(described, others),
            block_size=self.policy.block_size,
        )

    def _fenced(self, peer: PeerId, route: RouteId, epoch: Epoch, now_s: float) -> list[Effect]:
        """A stage lets go of the former epoch. Of a slice that was dropped that is its last word, and nothing follows;
        one that begins to load has been heard of."""
        placed = self._placed(peer, route, epoch)
        if placed is not None:
            placed[1].heard_s = now_s
        return []

    def _progressed(self, peer: PeerId, said: LoadProgress, now_s: float) -> list[Effect]:
        found = self._placed(peer, said.route, said.epoch)
        if found is None:
            return []
        model, placement = found
        placement.heard_s = now_s
        placement.bytes_done, placement.bytes_total, placement.phase = said.bytes_done, said.bytes_total, said.phase
        load = NodeLoad(
            node_id=placement.share.node, state=said.phase, bytes_done=said.bytes_done, bytes_total=said.bytes_total
        )
        return [LoadMoved(model.model_id, load)]

    def _slice_loaded(self, peer: PeerId, loaded: SliceLoaded, now_s: float) -> list[Effect]:
        found = self._placed(peer, loaded.route, loaded.epoch)
        if found is None:
            return []
        model, placement = found
        placement.loaded = loaded
        route = model.route
        assert route is not None and model.described is not None
        self._weight_sources.holds(placement.share.node, (model.described.spec.fingerprint,))
        if model.phase != "loading" or any(stage.loaded is None for stage in route.stages):
            return []
        model.phase = "activating"
        try:
            route.kv_blocks, route.max_model_len = pool_size(
                model.described.spec, route, self.policy.max_model_len, self.policy.block_size, self.policy.running_max
            )
        except RefusalError as why:
            return self._wait(model, why.refusal, now_s)
        for stage in route.stages:
            stage.heard_s = now_s
        silence = SetTimer(("silence", model.model_id), now_s + _SILENT_S[model.phase])
        return [silence, *stage_orders.activate(route, self.results_addr)]

    def _stage_ready(self, peer: PeerId, route_id: RouteId, epoch: Epoch, now_s: float) -> list[Effect]:
        found = self._placed(peer, route_id, epoch)
        if found is None:
            return []
        model, placement = found
        placement.ready = True
        route = model.route
        assert route is not None and model.described is not None
        if model.phase != "activating" or not all(stage.ready for stage in route.stages):
            return []
        model.phase, model.why, model.served = "ready", "", True
        self._jobs.end(model.job, None, route)
        timer = CancelTimer(("silence", model.model_id))
        up = stage_orders.up(model.model_id, model.described, route, self.policy.block_size)
        return [timer, Tell(BROKER_NAME, up), *self._announce(), *model.answer(state="ready")]

    def _load_failed(self, peer: PeerId, route: RouteId, epoch: Epoch, refusal: Refusal, now_s: float) -> list[Effect]:
        found = self._placed(peer, route, epoch)
        if found is None or found[0].phase not in ("loading", "activating"):
            return []  # a loss ended this epoch already
        model, node = found[0], found[1].share.node
        if model.asks or not (model.kept or model.served):
            return self._fail(model, refusal)
        return [*self._blame(node, node, refusal.message, now_s), *self._go_around(model, refusal, now_s)]

    def _go_around(self, model: PlannedModel, refusal: Refusal, now_s: float) -> list[Effect]:
        """Without the nodes that cannot be made ready, at once; with them again only after a while."""
        assert model.described is not None
        try:
            nodes = {share.node for share in self._draft(model, now_s).shares}
        except RefusalError as why:
            return self._not_planned(model, why.refusal, now_s)
        if nodes & self._reach.shaky(now_s) or (model.route is not None and nodes == set(model.route.nodes())):
            return self._not_planned(model, refusal, now_s)
        return [*self._down(model, now_s, death=False), *self._plan(model, now_s)]

    def _silence(self, model_id: str, now_s: float) -> list[Effect]:
        """Whoever has said nothing for too long while it was made ready is done without, where that is possible. Where
        it is not, and nobody has been served yet, a source is waited for as long as workers wait.
        """
        model = self._models.get(model_id)
        if model is None or model.route is None or model.phase not in _SILENT_S:
            return []
        limit_s = _SILENT_S[model.phase]
        behind = [s for s in model.route.stages if not (s.loaded if model.phase == "loading" else s.ready)]
        silent = {stage.share.node: now_s - stage.heard_s for stage in behind if now_s - stage.heard_s >= limit_s}
        if not silent:
            return [SetTimer(("silence", model_id), min(stage.heard_s for stage in behind) + limit_s)]
        if not model.served and max(silent.values()) < FIRST_SILENT_S and not self._does_without(model, silent, now_s):
            return [SetTimer(("silence", model_id), now_s + TRY_AGAIN_S)]
        why = f"it has said nothing for {max(silent.values()):.0f} s while it was {model.phase}"
        blamed = [effect for node in silent for effect in self._blame(node, node, why, now_s, at_least_s=limit_s)]
        refusal = Refusal(code="timeout", message=f"{', '.join(silent)}: {why}")
        return [*blamed, *self._go_around(model, refusal, now_s)]

    def _does_without(self, model: PlannedModel, nodes: Container[NodeId], now_s: float) -> bool:
        """Whether there is a plan without these."""
        try:
            self._draft(model, now_s, without=nodes)
        except RefusalError:
            return False
        return True

    def _undelivered(self, undelivered: Undelivered, now_s: float) -> list[Effect]:
        """What was too large to be said: an order has failed, an answer becomes a refusal."""
        to, reason = undelivered.to, undelivered.refusal.message
        match undelivered.message:
            case LoadSlice(route=route, epoch=epoch, first_layer=first, end_layer=end):
                message = (
                    f"layers {first} to {end - 1} have too many tensors for one worker's order ({reason}); "
                    "add workers, so that each holds fewer layers"
                )
                return self._load_failed(to.peer, route, epoch, Refusal(code="unsupported", message=message), now_s)
            case JobsReply(ask=ask):
                refusal = Refusal(code="invalid_value", message=f"the answer is too large ({reason}); ask for one job")
                return [Send(to, JobsReply(ask=ask, refusal=refusal))]
            case _:
                return []  # models or a state of ours; the Post has logged it

    def _down(self, model: PlannedModel, now_s: float, *, death: bool) -> list[Effect]:
        if model.phase in ("loading", "activating"):
            model.phase = "waiting"
        if model.route is None or model.phase != "ready":
            return []
        model.phase = "waiting"
        down = Tell(BROKER_NAME, RouteDown(model_id=model.model_id, route=model.route.route, death=death))
        return [down, *self._begin_outage(model, now_s)]

    def _begin_outage(self, model: PlannedModel, now_s: float) -> list[Effect]:
        if model.outage is not None:
            return []  # its deadline stands, whatever is tried
        model.outage = Outage(now_s)
        return [SetTimer(("recovery", model.model_id), now_s + self.policy.recovery_deadline_s)]

    def _served(self, model_id: str, epoch: Epoch) -> list[Effect]:
        """The outage is over: not when all stages are ready, but when a token has come through them."""
        model = self._models.get(model_id)
        if model is None or model.route is None or model.route.epoch != epoch or model.phase != "ready":
            return []
        model.outage = None
        return [CancelTimer(("recovery", model_id))]

    def _wait(self, model: PlannedModel, refusal: Refusal, now_s: float) -> list[Effect]:
        """There is no plan now. A first load is refused; a model that served waits for a node until the deadline."""
        effects = self._down(model, now_s, death=False)
        if refusal.code != "no_workers" and (model.asks or not (model.kept or model.served)):
            return [*effects, *self._fail(model, refusal)]  # nothing of that comes by waiting
        if model.kept and not model.served and refusal.code != "no_workers":
            effects.append(
                DesiredModelFailed(refusal)
            )  # neither memory nor a setting that nobody can keep comes by waiting
        model.phase, model.why = "waiting", refusal.message
        stalled = attrs.evolve(refusal, code="no_workers", retry_after_s=refusal.retry_after_s or RETRY_AFTER_S)
        effects.append(Tell(BROKER_NAME, ModelStalled(model_id=model.model_id, refusal=stalled)))
        return [*effects, *self._begin_outage(model, now_s), *self._announce()]

    def _give_up(self, model_id: str, now_s: float) -> list[Effect]:
        """The recovery deadline passed. Whoever waits is told; the model stays wanted, and who comes later may wait as
        long again.
        """
        model = self._models.get(model_id)
        if model is None or model.outage is None:
            return []
        loads = model.route.stages if model.route is not None and model.phase == "loading" else []
        if loads and model.outage.is_moving(sum(placement.bytes_done for placement in loads)):
            return [SetTimer(("recovery", model_id), now_s + MOVING_S)]
        reason = model.why or f"the model is {model.phase}"
        message = f"no answer could go on within the recovery deadline: {reason}"
        refusal = Refusal(code="recovery_deadline", message=message, retry_after_s=10.0)
        if not (model.kept or model.served):
            return self._fail(model, refusal)
        gone = ModelGone(model_id=model_id, refusal=refusal, forget=False)
        again = SetTimer(("recovery", model_id), now_s + self.policy.recovery_deadline_s)
        return [Tell(BROKER_NAME, gone), *model.answer(refusal=refusal), again]

    def _drop(self, model: PlannedModel) -> list[Effect]:
        if model.route is None:
            return []
        self.number += 1
        there = [stage.node for stage in model.route.stages if self._nodes.get(stage.share.node) is stage.node]
        return stage_orders.drop(model.route.route, Epoch(self.term, self.number), there)

    # ------------------------------------------------------------ small helpers

    def _model_of(self, route: RouteId, epoch: Epoch) -> PlannedModel | None:
        of_route = (m for m in self._models.values() if m.route is not None and m.route.route == route)
        return next((m for m in of_route if m.route is not None and m.route.epoch == epoch), None)

    def _placed(self, peer: PeerId, route: RouteId, epoch: Epoch) -> tuple[PlannedModel, StagePlacement] | None:
        for model in self._models.values():
            if model.route is not None and model.route.route == route and model.route.epoch == epoch:
                for placement in model.route.stages:
                    if placement.node.peer == peer:
                        return model, placement
        return None

    def _save(self) -> SaveState:
        nodes = dict.fromkeys(name for m in self._models.values() if m.route for name in m.route.nodes())
        desired = tuple(m.desired for m in self._models.values() if m.phase != "failed")
        return SaveState(self.term, desired, tuple(nodes))

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
        return [Send(to, ModelReply(ask=ask, model_id=model_id, state=state, refusal=refusal, job=job))]
