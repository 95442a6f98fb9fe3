"""Where deployments go: over which nodes, when anew, and what becomes of one that finds no place.

On a loss it plans again over the survivors at once if that fits; else it waits for a node until the recovery deadline.
Several deployments of one model share no node, so that no loss takes two of them. A node that joins a cluster in which
all is placed is a spare until the next plan. Every hop of a plan is dialled before the plan begins; what works goes on
meanwhile. How a deployment gets from a plan to a route that serves is its own machine's.
"""

from collections.abc import Callable, Container, Iterator

import attrs

from hydra.actors.core.facts import ModelGone, ModelKnown, ModelStalled
from hydra.actors.core.machine import CancelTimer, Effect, Event, Received, SetTimer, Tell
from hydra.actors.core.names import BROKER_NAME
from hydra.actors.planning import stage_orders
from hydra.actors.planning.deployment import SILENT_S, CameUp, Deploy, Deployment, Halt, Overfull
from hydra.actors.planning.desired_model import DesiredModelFailed
from hydra.actors.planning.draft import Draft, Drafter, Wanted
from hydra.actors.planning.outage import MOVING_S, Outage
from hydra.actors.planning.placement import Route
from hydra.actors.planning.plan_settings import PlanSettings
from hydra.actors.planning.presence import Presence
from hydra.actors.planning.reach import HERE
from hydra.actors.planning.served_model import ServedModel
from hydra.actors.planning.served_models import ServedModels
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import COORDINATOR, Address, Epoch, NodeId, PeerId, RouteId
from hydra.protocol.messages.plans import LoadFailed, LoadProgress, Ready, RouteBroken, SliceLoaded
from hydra.protocol.model.model_spec import Described, TensorRange
from hydra.protocol.refusal import Refusal, RefusalError

TRY_AGAIN_S = 5.0
RETRY_AFTER_S = 5.0
FIRST_SILENT_S = 360.0  # of what has never served and no other node could do: longer than any source is waited for


@attrs.define(eq=False)
class Deployments:
    """The deployments of all served models."""

    policy: PlanSettings
    presence: Presence
    models: ServedModels
    ranges: Callable[[Described, int, int], tuple[TensorRange, ...]]
    results_addr: Endpoint
    _drafter: Drafter = attrs.field(init=False)
    _next_route: int = attrs.field(default=1, init=False)

    def __attrs_post_init__(self) -> None:
        self._drafter = Drafter(self.policy, self.presence.reach)

    def __iter__(self) -> Iterator[tuple[ServedModel, Deployment]]:
        return iter([(model, deployment) for model in self.models for deployment in model.deployments])

    def add(self, model: ServedModel) -> None:
        """As many as are desired, none of them placed. The model is described."""
        assert model.described is not None and not model.deployments
        for _ in range(model.desired.replicas):
            route = RouteId(self._next_route)
            self._next_route += 1
            model.deployments.append(
                Deployment(route, model.model_id, model.described, self.policy, self.ranges, self.results_addr)
            )

    def find(self, route: RouteId) -> tuple[ServedModel, Deployment] | None:
        return next(((model, d) for model, d in self if d.route_id == route), None)

    # ------------------------------------------------------------ what stages say

    def receive(
        self, sender: Address, message: SliceLoaded | Ready | LoadProgress | LoadFailed, now_s: float
    ) -> list[Effect]:
        """Words of another epoch, or of somebody who is not a stage of it, change nothing."""
        found = self.find(message.route)
        if found is None or not found[1].has_stage(message.route, message.epoch, sender.peer):
            return []
        model, deployment = found
        if isinstance(message, LoadFailed):
            return self._load_failed(model, deployment, sender.peer, message.refusal, now_s)
        if isinstance(message, SliceLoaded):
            node = next(stage.share.node for stage in deployment.stages if stage.node.peer == sender.peer)
            self.presence.sources.holds(node, (deployment.described.spec.fingerprint,))
        return self._tell(model, deployment, Received(sender, message), now_s)

    def fenced(self, peer: PeerId, route: RouteId, epoch: Epoch, now_s: float) -> None:
        """A stage let go of a former epoch. Of a slice that was dropped that is its last word; one that begins to load
        has been heard of.
        """
        found = self.find(route)
        if found is not None and found[1].has_stage(route, epoch, peer):
            found[1].heard(peer, now_s)

    def _tell(self, model: ServedModel, deployment: Deployment, event: Event, now_s: float) -> list[Effect]:
        """What its machine answers; what is meant for its owner is answered here."""
        effects: list[Effect] = []
        for effect in deployment.handle(event, now_s):
            match effect:
                case CameUp():
                    effects += self._came_up(model, deployment)
                case Overfull(refusal=refusal):
                    effects += self._wait(model, deployment, refusal, now_s)
                case _:
                    effects.append(effect)
        return effects

    def _came_up(self, model: ServedModel, deployment: Deployment) -> list[Effect]:
        assert deployment.route is not None
        model.served = True
        self.models.jobs.end(model.job, None, deployment.route)
        up = stage_orders.up(model.model_id, deployment.described, deployment.route, self.policy.engine.block_size)
        return [Tell(BROKER_NAME, up), *self.models.announce(), *model.answer(state="ready")]

    def served(self, model_id: str, epoch: Epoch) -> list[Effect]:
        """An outage is over: not when all stages are ready, but when a token has come through them."""
        for model, deployment in self:
            route = deployment.route
            ours = model.model_id == model_id and route is not None and route.epoch == epoch
            if ours and deployment.phase == "ready":
                deployment.outage = None
                return [CancelTimer(("recovery", deployment.route_id))]
        return []

    # ------------------------------------------------------------ what ends an epoch

    def lost(self, node: NodeId, now_s: float) -> list[Effect]:
        """All of its stages are gone; `presence` knows already."""
        effects: list[Effect] = []
        for model, deployment in self:
            if node in deployment.nodes():
                if deployment.phase in ("loading", "activating"):
                    effects += self.presence.blame(node, node, "lost while it was made ready", now_s)
                effects += self._halt(model, deployment, now_s, death=True)
                effects += self.plan(model, deployment, now_s)
        return effects

    def vanished(self, route: RouteId, epoch: Epoch, reason: str, link: int, now_s: float) -> list[Effect]:
        found = self.find(route)
        if found is None or found[1].route is None or found[1].route.epoch != epoch:
            return []
        return self._break(*found, link, reason, now_s)

    def broken(self, peer: PeerId, broken: RouteBroken, now_s: float) -> list[Effect]:
        """Only the stages of an epoch, and the Broker beside us, may end it."""
        found = self.find(broken.route)
        if found is None or found[1].route is None or found[1].route.epoch != broken.epoch:
            return []
        peers = [stage.node.peer for stage in found[1].stages]
        if peer == COORDINATOR:
            return self._break(*found, len(peers) if broken.side == "in" else 0, broken.why, now_s)
        if peer not in peers:
            return []
        return self._break(*found, peers.index(peer) + (broken.side == "out"), broken.why, now_s)

    def _break(self, model: ServedModel, deployment: Deployment, link: int, reason: str, now_s: float) -> list[Effect]:
        """An epoch cannot go on, because of the link towards its stage `link` (the last one leads to the results)."""
        if deployment.phase not in ("ready", "activating"):
            return []
        ends = [HERE, *deployment.nodes(), HERE]
        deployment.reason = reason
        effects = self.presence.blame(ends[link], ends[link + 1], reason, now_s)
        return [*effects, *self._halt(model, deployment, now_s), *self.plan(model, deployment, now_s)]

    def _halt(self, model: ServedModel, deployment: Deployment, now_s: float, *, death: bool = False) -> list[Effect]:
        served = deployment.phase == "ready"
        effects = self._tell(model, deployment, Halt(death), now_s)
        return [*effects, *(self._begin_outage(deployment, now_s) if served else [])]

    def _begin_outage(self, deployment: Deployment, now_s: float) -> list[Effect]:
        if deployment.outage is not None:
            return []  # its deadline stands, whatever is tried
        deployment.outage = Outage(now_s)
        return [SetTimer(("recovery", deployment.route_id), now_s + self.policy.engine.recovery_deadline)]

    # ------------------------------------------------------------ plans

    def plan_waiting(self, now_s: float) -> list[Effect]:
        waiting = [(model, d) for model, d in self if d.phase == "waiting" or (d.phase == "ready" and d.dialling)]
        return [effect for model, deployment in waiting for effect in self.plan(model, deployment, now_s)]

    def plan(self, model: ServedModel, deployment: Deployment, now_s: float) -> list[Effect]:
        """A new epoch over the nodes present now; or their dialling first; or a wait for better times."""
        if self.presence.quorum.waiting or self.models.get(model.model_id) is not model:
            return []
        deployment.dialling = False
        try:
            draft = self.draft(model, deployment, now_s)
        except RefusalError as error:
            if deployment.phase != "ready":
                return self._wait(model, deployment, error.refusal, now_s)
            return []  # what works goes on
        untried = self.presence.reach.untried([share.node for share in draft.shares], now_s)
        if untried:
            deployment.dialling = True
            return self.presence.reach.dial(untried, now_s)
        return self._begin_epoch(model, deployment, draft, now_s)

    def draft(self, model: ServedModel, deployment: Deployment, now_s: float, without: Container[NodeId] = ()) -> Draft:
        """Over the nodes that have not missed beats and hold no other deployment of the model, or RefusalError."""
        others = model.others(deployment)
        taken = {name for other in others if other.is_placed for name in other.nodes()}
        nodes = {name: node for name, node in self.presence.heard().items() if name not in taken}
        return self._drafter.draft(self._wanted(model, deployment), nodes, now_s, without)

    def _wanted(self, model: ServedModel, deployment: Deployment) -> Wanted:
        """What a plan of this deployment has to keep to."""
        others: list[Route] = [d.route for _, d in self if d is not deployment and d.route is not None]
        return Wanted(
            spec=deployment.described.spec,
            dtype=model.desired.dtype or self.policy.model.dtype,
            held=deployment.route,
            others=tuple(others),
            to_come=sum(not other.is_placed for other in model.others(deployment)),
        )

    def _begin_epoch(self, model: ServedModel, deployment: Deployment, draft: Draft, now_s: float) -> list[Effect]:
        served = deployment.phase == "ready"
        nodes = [share.node for share in draft.shares]
        place = Deploy(
            epoch=self.models.next_epoch(),
            draft=draft,
            present=self.presence.nodes,
            sources={node: self.presence.sources_of(deployment.described, node) for node in nodes},
        )
        effects = self._begin_outage(deployment, now_s) if served else []
        if not model.served:
            deployment.outage = None
            effects.append(CancelTimer(("recovery", deployment.route_id)))
        placed = self._tell(model, deployment, place, now_s)
        goes_on = Tell(BROKER_NAME, ModelStalled(model_id=model.model_id, refusal=None))
        return [goes_on, self.models.save(), *effects, *placed, *self.models.announce()]

    # ------------------------------------------------------------ loads that fail or say nothing

    def _load_failed(
        self, model: ServedModel, deployment: Deployment, peer: PeerId, refusal: Refusal, now_s: float
    ) -> list[Effect]:
        if deployment.phase not in ("loading", "activating"):
            return []  # a loss ended this epoch already
        node = next(stage.share.node for stage in deployment.stages if stage.node.peer == peer)
        if self._fails_with_it(model, deployment):
            return self.models.fail(model, refusal)
        effects = self.presence.blame(node, node, refusal.message, now_s)
        return [*effects, *self._go_around(model, deployment, refusal, now_s)]

    def _go_around(self, model: ServedModel, deployment: Deployment, refusal: Refusal, now_s: float) -> list[Effect]:
        """Without the nodes that cannot be made ready, at once; with them again only after a while."""
        try:
            nodes = {share.node for share in self.draft(model, deployment, now_s).shares}
        except RefusalError as error:
            return self.not_planned(model, deployment, error.refusal, now_s)
        if nodes & self.presence.reach.shaky(now_s) or nodes == set(deployment.nodes()):
            return self.not_planned(model, deployment, refusal, now_s)
        return [*self._halt(model, deployment, now_s), *self.plan(model, deployment, now_s)]

    def relieve(self, now_s: float) -> list[Effect]:
        """A node has come: what is being made ready with nodes that failed at it before may be done without them."""
        effects: list[Effect] = []
        for model, deployment in self:
            if deployment.phase not in SILENT_S:
                continue
            shaky = self.presence.reach.shaky(now_s).intersection(deployment.nodes())
            if shaky and self._does_without(model, deployment, shaky, now_s):
                effects += [*self._halt(model, deployment, now_s), *self.plan(model, deployment, now_s)]
        return effects

    def silence(self, route: RouteId, now_s: float) -> list[Effect]:
        """Nodes that have said nothing for too long while they were made ready are done without, where that is
        possible. Where it is not, and nothing has been served yet, a source is waited for as long as workers wait.
        """
        found = self.find(route)
        if found is None or found[1].phase not in SILENT_S:
            return []
        model, deployment = found
        limit_s, behind, key = SILENT_S[deployment.phase], deployment.behind(), ("silence", route)
        silent = {stage.share.node: now_s - stage.heard_s for stage in behind if now_s - stage.heard_s >= limit_s}
        if not silent:
            return [SetTimer(key, min(stage.heard_s for stage in behind) + limit_s)]
        without = model.served or self._does_without(model, deployment, silent, now_s)
        if not without and max(silent.values()) < FIRST_SILENT_S:
            return [SetTimer(key, now_s + TRY_AGAIN_S)]
        reason = f"it has said nothing for {max(silent.values()):.0f} s while it was {deployment.phase}"
        blamed = [
            effect for node in silent for effect in self.presence.blame(node, node, reason, now_s, at_least_s=limit_s)
        ]
        refusal = Refusal(code="timeout", message=f"{', '.join(silent)}: {reason}")
        return [*blamed, *self._go_around(model, deployment, refusal, now_s)]

    def _does_without(self, model: ServedModel, deployment: Deployment, nodes: Container[NodeId], now_s: float) -> bool:
        """Whether there is a plan without these."""
        try:
            self.draft(model, deployment, now_s, without=nodes)
        except RefusalError:
            return False
        return True

    # ------------------------------------------------------------ no place

    def _fails_with_it(self, model: ServedModel, deployment: Deployment) -> bool:
        """Whether a model ends with this deployment's failure: a first load, and nothing else of it is under way."""
        return not model.is_lasting and not any(other.is_placed for other in model.others(deployment))

    def not_planned(self, model: ServedModel, deployment: Deployment, refusal: Refusal, now_s: float) -> list[Effect]:
        """A model that is wanted whatever happens, or that has served, is tried again; any other has failed."""
        if self._fails_with_it(model, deployment):
            return self.models.fail(model, refusal)
        again = SetTimer(("again", deployment.route_id), now_s + TRY_AGAIN_S)
        return [*self._wait(model, deployment, refusal, now_s), again]

    def try_again(self, route: RouteId, now_s: float) -> list[Effect]:
        found = self.find(route)
        return self.plan(*found, now_s) if found is not None and found[1].phase == "waiting" else []

    def _wait(self, model: ServedModel, deployment: Deployment, refusal: Refusal, now_s: float) -> list[Effect]:
        """There is no plan now. A first load is refused; a model that served waits for a node until the deadline.
        Beside others of its model that are placed it holds no memory meanwhile, so that they may have all nodes.
        """
        effects = self._halt(model, deployment, now_s)
        deployment.reason = refusal.message
        if any(other.is_placed for other in model.others(deployment)):
            effects += self.models.drop(deployment)
        elif refusal.code != "no_workers" and not model.is_lasting:
            return [*effects, *self.models.fail(model, refusal)]  # nothing of that comes by waiting
        else:
            effects += stalled(model, refusal)
        return [*effects, *self._begin_outage(deployment, now_s), *self.models.announce()]

    def give_up(self, route: RouteId, now_s: float) -> list[Effect]:
        """The recovery deadline passed. Who waits is told; the model stays wanted, and who comes later may wait as long
        again. Where another deployment serves, only those end that are too long for it.
        """
        found = self.find(route)
        if found is None:
            return []
        model, deployment = found
        outage = deployment.outage
        if outage is None:
            return []
        key = ("recovery", route)
        loads = deployment.stages if deployment.phase == "loading" else []
        if loads and outage.is_moving(sum(stage.bytes_done for stage in loads)):
            return [SetTimer(key, now_s + MOVING_S)]
        again = SetTimer(key, now_s + self.policy.engine.recovery_deadline)
        if any(other.phase == "ready" for other in model.others(deployment)):
            length = model.context(self.policy.model.max_model_len)
            return [Tell(BROKER_NAME, ModelKnown(model_id=model.model_id, max_model_len=length)), again]
        reason = deployment.reason or f"the model is {deployment.phase}"
        message = f"no answer could go on within the recovery deadline: {reason}"
        refusal = Refusal(code="recovery_deadline", message=message, retry_after_s=10.0)
        if not (model.kept or model.served):
            return self.models.fail(model, refusal)
        gone = ModelGone(model_id=model.model_id, refusal=refusal, forget=False)
        return [Tell(BROKER_NAME, gone), *model.answer(refusal=refusal), again]


def stalled(model: ServedModel, refusal: Refusal) -> list[Effect]:
    """New work is not taken now."""
    effects: list[Effect] = []
    if model.kept and not model.served and refusal.code != "no_workers":
        effects.append(DesiredModelFailed(refusal))  # neither memory nor a setting comes by waiting
    refused = attrs.evolve(refusal, code="no_workers", retry_after_s=refusal.retry_after_s or RETRY_AFTER_S)
    return [*effects, Tell(BROKER_NAME, ModelStalled(model_id=model.model_id, refusal=refused))]
