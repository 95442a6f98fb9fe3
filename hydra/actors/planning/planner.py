"""What is wanted: the Planner keeps a list of models that should be served, and has them described, placed and let go.

Where a model's deployments go is decided in `deployments`, over the nodes of `presence`; the life of one deployment,
from a plan to a route that serves, is the machine `Deployment`. The Planner knows a model as a ModelSpec and a list
of byte ranges, and memory as numbers; it reads no file (the Library port does).
"""

from collections.abc import Callable

import attrs

from hydra.actors.core.facts import (
    FrontendJoined,
    FrontendLost,
    ModelGone,
    ModelKnown,
    NodeJoined,
    NodeLost,
    NodeSuspect,
    RouteServed,
    StepVanished,
    TermRaised,
    Undelivered,
)
from hydra.actors.core.machine import Effect, Event, Received, Send, SetTimer, Tell, TimerFired
from hydra.actors.core.names import BROKER_NAME
from hydra.actors.planning import startup_quorum
from hydra.actors.planning.deployments import TRY_AGAIN_S, Deployments, stalled
from hydra.actors.planning.desired_model import (
    CheckSource,
    Describe,
    DesiredModel,
    ModelNoted,
    NotDescribed,
    Recover,
    SourceChecked,
    WasDescribed,
)
from hydra.actors.planning.placement import Route
from hydra.actors.planning.plan_settings import PlanSettings
from hydra.actors.planning.presence import Presence
from hydra.actors.planning.reach import HERE, REDIAL, DialledOut, Reach
from hydra.actors.planning.served_model import ModelPhase, ServedModel
from hydra.actors.planning.served_models import ServedModels, model_reply
from hydra.actors.planning.split import check_max_model_len
from hydra.actors.planning.weight_sources import WeightSources
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Address, AskId, NodeId, RouteId
from hydra.protocol.messages.models import CancelJob, JobsReply, JobsRequest, LoadModel, Rebalance, UnloadModel
from hydra.protocol.messages.plans import (
    Dialled,
    Fenced,
    LoadFailed,
    LoadProgress,
    LoadSlice,
    Ready,
    RouteBroken,
    SliceLoaded,
)
from hydra.protocol.model.model_name import default_model_id
from hydra.protocol.model.model_spec import Described, ModelCard, TensorRange
from hydra.protocol.model.quantised import quantised
from hydra.protocol.refusal import Refusal, RefusalError


@attrs.define(eq=False)
class Planner:
    """`store_addr` is where the coordinator lends the files of what it described; None: it does not."""

    term: int
    policy: PlanSettings
    ranges: Callable[[Described, int, int], tuple[TensorRange, ...]]
    results_addr: Endpoint
    wall_s: int = 0
    store_addr: Endpoint | None = None
    presence: Presence = attrs.field(init=False)
    deployments: Deployments = attrs.field(init=False)
    _models: ServedModels = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.presence = Presence(Reach(self.results_addr, self.store_addr), WeightSources(self.store_addr))
        self._models = ServedModels(self.term, self.policy.model.max_model_len, self.wall_s, self.presence)
        self.deployments = Deployments(self.policy, self.presence, self._models, self.ranges, self.results_addr)

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        match event:
            case Received(sender=sender, message=message):
                return self._receive(sender, message, now_s)
            case NodeJoined() as joined:
                return self.presence.joined(joined, now_s)
            case NodeLost(node=node):
                self.presence.lost(node)
                return self.deployments.lost(node, now_s)
            case NodeSuspect(node=node, suspect=suspect):
                self.presence.suspect(node, suspect)
                return [] if suspect else self.deployments.plan_waiting(now_s)
            case StepVanished(route=route, epoch=epoch, why=reason, stage_index=link):
                return self.deployments.vanished(route, epoch, reason, link, now_s)
            case RouteServed(model_id=model_id, epoch=epoch):
                return self.deployments.served(model_id, epoch)
            case FrontendJoined(peer=peer):
                return self._models.frontend_joined(peer)
            case FrontendLost(peer=peer):
                self._models.frontend_lost(peer)
                return []
            case TermRaised(term=term):
                self.term = self._models.term = term
                return [self._models.save()]
            case Recover() as recover:
                return self._recover(recover, now_s)
            case WasDescribed(model_path=path, described=described):
                return self._was_described(path, described, now_s)
            case NotDescribed(model_path=path, refusal=refusal):
                return self._not_described(path, refusal, now_s)
            case DialledOut(ask=ask_id, unanswered=unanswered):
                return self._tried(self.presence.reach.answered(ask_id, HERE, unanswered, now_s), now_s)
            case SourceChecked() as checked:
                return self._source_checked(checked, now_s)
            case Undelivered() as undelivered:
                return self._undelivered(undelivered, now_s)
            case TimerFired() as timer:
                return self._timer(timer, now_s)
            case _:
                raise AssertionError(f"a planner cannot be told {event!r}")

    def _timer(self, timer: TimerFired, now_s: float) -> list[Effect]:
        match timer.key:
            case ("dial", int(ask_id), str(source)):
                return self._tried(self.presence.reach.silent(AskId(ask_id), NodeId(source), now_s), now_s)
            case key if key == REDIAL:
                return self._tried(self.presence.reach.redial(now_s), now_s)
            case startup_quorum.AWAITED:
                self.presence.quorum.forget_former()
                return self._start_if_complete(now_s) if self.presence.quorum.waiting else []
            case startup_quorum.PATIENCE:
                return self._start(now_s)
            case ("describe", str(model_id)):
                return self._describe_again(model_id)
            case ("undescribed", str(model_id)):
                return self._still_undescribed(model_id, now_s)
            case ("again", int(route)):
                return self.deployments.try_again(RouteId(route), now_s)
            case ("silence", int(route)):
                return self.deployments.silence(RouteId(route), now_s)
            case ("recovery", int(route)):
                return self.deployments.give_up(RouteId(route), now_s)
            case key:
                raise AssertionError(f"a planner has no timer {key!r}")

    def _receive(self, sender: Address, message: object, now_s: float) -> list[Effect]:
        match message:
            case SliceLoaded() | Ready() | LoadProgress() | LoadFailed():
                return self.deployments.receive(sender, message, now_s)
            case RouteBroken() as broken:
                return self.deployments.broken(sender.peer, broken, now_s)
            case Dialled(ask=ask_id, unanswered=unanswered):
                effects = self.presence.dialled(sender.peer, ask_id, unanswered, now_s)
                return [] if effects is None else self._tried(effects, now_s)
            case Fenced(route=route, epoch=epoch):
                self.deployments.fenced(sender.peer, route, epoch, now_s)
                return []
            case LoadModel() as ask:
                return self._load(sender, ask)
            case UnloadModel(ask=ask_id, model_id=model_id):
                return self._unload(sender, ask_id, model_id)
            case Rebalance(ask=ask_id):
                return self._rebalance(sender, ask_id, now_s)
            case JobsRequest(ask=ask_id, job=job):
                return self._models.tell_jobs(sender, ask_id, job)
            case CancelJob(ask=ask_id, job=job):
                return self._cancel(sender, ask_id, job)
            case _:
                raise AssertionError(f"a planner cannot be told {message!r}")

    # ------------------------------------------------------------ what others may read

    @property
    def number(self) -> int:
        """Epochs that were begun or ended in this term."""
        return self._models.epochs

    def cards(self) -> tuple[ModelCard, ...]:
        """The models as frontends see them; only those whose files were understood."""
        return self._models.cards()

    def fault_of(self, node: NodeId, now_s: float) -> str:
        """Why no plan may have this node now, for people; empty: one may."""
        return self.presence.reach.fault_of(node, now_s) if node in self.presence.nodes else ""

    def is_tried(self, node: NodeId) -> bool:
        """Whether the ways to it and from it have been dialled, with whatever result."""
        return self.presence.reach.tried(node)

    def models(self) -> tuple[tuple[str, ModelPhase, Route | None], ...]:
        """(model id, phase, route) of every deployment, or of a model that has none yet; for the status page."""
        shown: list[tuple[str, ModelPhase, Route | None]] = []
        for model in self._models:
            shown += [(model.model_id, d.phase, d.route) for d in model.deployments]
            shown += [] if model.deployments else [(model.model_id, model.phase, None)]
        return tuple(shown)

    def check(self) -> None:
        """The invariants. Raises AssertionError; for tests and the simulator."""
        self.presence.check()
        held: dict[str, set[NodeId]] = {}
        for model, deployment in self.deployments:
            deployment.check()
            if deployment.is_placed:
                nodes = held.setdefault(model.model_id, set())
                assert nodes.isdisjoint(deployment.nodes()), f"two deployments of {model.model_id} share a node"
                nodes.update(deployment.nodes())

    # ------------------------------------------------------------ wanted

    def _recover(self, recover: Recover, now_s: float) -> list[Effect]:
        effects = self.presence.begin(recover, now_s)
        for desired in recover.desired:
            effects += self._models.want(desired, None)[1]
        for model in self._models:
            model.kept = True
        return [self._models.save(), *effects]

    def _load(self, sender: Address, ask: LoadModel) -> list[Effect]:
        desired = DesiredModel(ask.model_path, ask.model_id, ask.dtype, replicas=ask.replicas, quantize=ask.quantize)
        model_id = desired.model_id or default_model_id(desired.model_path)
        if self._models.get(model_id) is not None:
            message = f"a model {model_id!r} is there already; unload it first, or give another model_id"
            refusal = Refusal(code="invalid_value", message=message, param="model_id")
            return model_reply(sender, ask.ask, refusal=refusal)
        model, effects = self._models.want(desired, (sender, ask.ask) if ask.wait else None)
        model.total_layers = ask.total_layers
        reply = [] if ask.wait else model_reply(sender, ask.ask, model_id=model_id, state="loading", job=model.job)
        return [self._models.save(), *reply, *effects]

    def _unload(self, sender: Address, ask: AskId, model_id: str) -> list[Effect]:
        model = self._models.get(model_id)
        if model is None:
            message = f"no model {model_id!r} is loaded"
            return model_reply(sender, ask, refusal=Refusal(code="model_not_found", message=message, param="model_id"))
        gone = Refusal(code="model_not_found", message=f"the model {model_id!r} was unloaded")
        return [*self._models.fail(model, gone), *model_reply(sender, ask, model_id=model_id, state="unloaded")]

    def _cancel(self, sender: Address, ask: AskId, job: str) -> list[Effect]:
        """Stages that are told to drop their slice stop fetching; their caches keep what has come."""
        model = next((model for model in self._models if model.job == job), None)
        effects: list[Effect] = []
        if model is not None and not model.served:
            message = f"The loading of {model.model_id!r} was called off; what was fetched is kept."
            effects = self._models.fail(model, Refusal(code="cancelled", message=message))
        return [*effects, *self._models.tell_jobs(sender, ask, job)]

    # ------------------------------------------------------------ described

    def _was_described(self, path: str, described: Described, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for model in self._models:
            if not model.describing or model.desired.place != path:
                continue
            layers = described.spec.n_layers
            if model.total_layers not in (None, layers):
                message = f"total_layers is {model.total_layers}, but the model's config says {layers}"
                refusal = Refusal(code="invalid_value", message=message, param="total_layers")
                effects += self._models.fail(model, refusal)
                continue
            try:
                as_wanted = quantised(described, model.desired.quantize)
                check_max_model_len(as_wanted.spec, self.policy.model.max_model_len)
            except RefusalError as error:
                effects += self._cannot_describe(model, error.refusal, now_s)
                continue
            model.described, model.describing = as_wanted, False
            self.deployments.add(model)
            if described.hub_commit is not None:
                model.desired = attrs.evolve(model.desired, pinned=described.model_path)
            known = ModelKnown(model_id=model.model_id, max_model_len=model.context(self.policy.model.max_model_len))
            effects += [Tell(BROKER_NAME, known), self._models.save(), *self._models.announce()]
            for deployment in model.deployments:
                effects += self.deployments.plan(model, deployment, now_s)
        return effects

    def _not_described(self, path: str, refusal: Refusal, now_s: float) -> list[Effect]:
        waiting = [model for model in self._models if model.describing and model.desired.place == path]
        return [effect for model in waiting for effect in self._cannot_describe(model, refusal, now_s)]

    def _cannot_describe(self, model: ServedModel, refusal: Refusal, now_s: float) -> list[Effect]:
        """A model that is wanted whatever happens is tried again; any other has failed."""
        if not model.is_lasting:
            return self._models.fail(model, refusal)
        model.describing, model.reason = False, refusal.message
        effects = [*stalled(model, refusal), *self._models.announce()]
        if not model.missed:
            model.missed = True
            effects.append(SetTimer(("undescribed", model.model_id), now_s + self.policy.engine.recovery_deadline))
        return [*effects, SetTimer(("describe", model.model_id), now_s + TRY_AGAIN_S)]

    def _describe_again(self, model_id: str) -> list[Effect]:
        model = self._models.get(model_id)
        if model is None or model.described is not None or model.describing:
            return []
        model.describing = True
        return [Describe(model.desired.place)]

    def _still_undescribed(self, model_id: str, now_s: float) -> list[Effect]:
        """Who waits is told; the model stays wanted, and who comes later may wait as long again."""
        model = self._models.get(model_id)
        if model is None or model.described is not None:
            return []
        message = f"no answer could go on within the recovery deadline: {model.reason}"
        refusal = Refusal(code="recovery_deadline", message=message, retry_after_s=10.0)
        gone = ModelGone(model_id=model_id, refusal=refusal, forget=False)
        again = SetTimer(("undescribed", model_id), now_s + self.policy.engine.recovery_deadline)
        return [Tell(BROKER_NAME, gone), *model.answer(refusal=refusal), again]

    # ------------------------------------------------------------ placed

    def _tried(self, effects: list[Effect], now_s: float) -> list[Effect]:
        """More is known of who can reach whom: those that were waited for may be here, and plans may be possible."""
        effects = [*effects, *self.presence.note_reach(now_s)]
        greeted, newcomers = self.presence.greet_usable(now_s)
        effects += [*greeted, *(self.deployments.relieve(now_s) if newcomers else [])]
        if self.presence.quorum.waiting:
            return [*effects, *self._start_if_complete(now_s)]
        return [*effects, *self.deployments.plan_waiting(now_s)]

    def _start_if_complete(self, now_s: float) -> list[Effect]:
        return self._start(now_s) if self.presence.is_complete() else []

    def _start(self, now_s: float) -> list[Effect]:
        """The first plans: over those who are here."""
        return [*self.presence.end_start(), *self.deployments.plan_waiting(now_s)]

    def _rebalance(self, sender: Address, ask: AskId, now_s: float) -> list[Effect]:
        """What works goes on until all that the new plan needs is known to be there: hops, and bytes that move."""
        effects: list[Effect] = []
        to_check: list[str] = []
        for model, deployment in self.deployments:
            if deployment.phase == "waiting":
                effects += self.deployments.plan(model, deployment, now_s)
            elif deployment.phase == "ready":
                try:
                    draft = self.deployments.draft(model, deployment, now_s)
                except RefusalError:
                    continue
                if not draft.moves:
                    effects += self.deployments.plan(model, deployment, now_s)
                elif model.model_id not in to_check:
                    to_check.append(model.model_id)
                    effects.append(CheckSource(model.model_id, deployment.described))
        return [*effects, *model_reply(sender, ask, state="rebalancing" if effects else "unchanged")]

    def _source_checked(self, checked: SourceChecked, now_s: float) -> list[Effect]:
        """Held bytes are enough for what works; a new split whose bytes cannot be had would only take it down."""
        model = self._models.get(checked.model_id)
        if model is None or model.phase != "ready":
            return []
        if checked.fault:
            reason = f"its layers stay where they are, since none can be read: {checked.fault}"
            return [ModelNoted(model.model_id, reason)]
        ready = [deployment for deployment in model.deployments if deployment.phase == "ready"]
        effects = [effect for deployment in ready for effect in self.deployments.plan(model, deployment, now_s)]
        return [*effects, *(self.deployments.plan_waiting(now_s) if len(model.deployments) > 1 else [])]

    # ------------------------------------------------------------ what could not be said

    def _undelivered(self, undelivered: Undelivered, now_s: float) -> list[Effect]:
        """What was too large to be said: an order has failed, an answer becomes a refusal."""
        to, reason = undelivered.to, undelivered.refusal.message
        match undelivered.message:
            case LoadSlice(route=route, epoch=epoch, first_layer=first, end_layer=end):
                message = (
                    f"layers {first} to {end - 1} have too many tensors for one worker's order ({reason}); "
                    "add workers, so that each holds fewer layers"
                )
                refusal = Refusal(code="unsupported", message=message)
                failed = LoadFailed(route=route, epoch=epoch, refusal=refusal)
                return self.deployments.receive(to, failed, now_s)
            case JobsReply(ask=ask):
                refusal = Refusal(code="invalid_value", message=f"the answer is too large ({reason}); ask for one job")
                return [Send(to, JobsReply(ask=ask, refusal=refusal))]
            case _:
                return []  # models or a state of ours; the gateway has logged it
