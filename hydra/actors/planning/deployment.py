"""The life of one deployment: one version of a served model on one route, with one epoch at a time.

TRANSITIONS below is the diagram. `Deploy` is taken in every state: a new epoch over other stages, or the same ones.
The last stage's SliceLoaded, and the last one's Ready, go on. A plan is a value; nothing of it is patched in place.
Which nodes there are, and when a deployment is placed or halted, is its owner's to decide.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import attrs

from hydra.actors.core.facts import NodeJoined, RouteDown
from hydra.actors.core.machine import CancelTimer, Effect, Event, Received, SetTimer, Tell
from hydra.actors.core.names import BROKER_NAME
from hydra.actors.core.transitions import Cause, Transitions, rows
from hydra.actors.planning import stage_orders
from hydra.actors.planning.desired_model import LoadMoved
from hydra.actors.planning.draft import Draft
from hydra.actors.planning.outage import Outage
from hydra.actors.planning.placement import Route, StagePlacement, pool_size
from hydra.actors.planning.plan_settings import PlanSettings
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Epoch, NodeId, PeerId, RouteId
from hydra.protocol.messages.models import NodeLoad
from hydra.protocol.messages.plans import LoadProgress, Ready, SliceLoaded
from hydra.protocol.model.model_spec import Described, TensorRange
from hydra.protocol.model.source import Source
from hydra.protocol.refusal import Refusal, RefusalError

DeploymentPhase = Literal["waiting", "loading", "activating", "ready"]

LOAD_SILENT_S = 90.0  # workers speak every few seconds while bytes come
ACTIVATE_SILENT_S = 300.0  # kernels may be compiled and graphs captured, of which no word is said
SILENT_S: Mapping[str, float] = {"loading": LOAD_SILENT_S, "activating": ACTIVATE_SILENT_S}


@attrs.frozen(kw_only=True)
class Deploy:
    """Event: a new epoch over the nodes of a draft. `present` are all nodes: those left behind are told to drop."""

    epoch: Epoch
    draft: Draft
    present: Mapping[NodeId, NodeJoined]
    sources: Mapping[NodeId, tuple[Source, ...]]


@attrs.frozen
class Halt:
    """Event: the epoch counts no more. `death`: because a stage died."""

    death: bool


@attrs.frozen
class CameUp:
    """Effect, for the owner: every stage is ready; `stage_orders.up` says so to the Broker."""


@attrs.frozen
class Overfull:
    """Effect, for the owner: what was loaded leaves too little room for the KV of one sequence."""

    refusal: Refusal


TRANSITIONS = Transitions(
    "deployment",
    "waiting",
    (
        *rows("waiting activating ready", Deploy, "loading"),
        *rows("loading", SliceLoaded, "activating"),
        *rows("activating", Ready, "ready"),
        *rows("loading activating ready", Halt, "waiting"),
    ),
)


@attrs.define(eq=False)
class Deployment:
    """`route_id` is its own for as long as it lives; `route` is its last epoch."""

    route_id: RouteId
    model_id: str
    described: Described
    policy: PlanSettings
    ranges: Callable[[Described, int, int], tuple[TensorRange, ...]]
    results_addr: Endpoint
    phase: DeploymentPhase = attrs.field(default="waiting", init=False)
    route: Route | None = attrs.field(default=None, init=False)
    outage: Outage | None = attrs.field(default=None, init=False)  # nothing of it serves; the deadline runs
    reason: str = attrs.field(default="", init=False)  # why it does not serve, for people
    dialling: bool = attrs.field(default=False, init=False)  # the hops of a new plan are being tried

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        match event:
            case Deploy() as deploy:
                return self._deploy(deploy, now_s)
            case Halt(death=death):
                return self._halt(death)
            case Received(sender=sender, message=SliceLoaded() as loaded):
                return self._slice_loaded(self._stage_of(sender.peer), loaded, now_s)
            case Received(sender=sender, message=Ready()):
                return self._stage_ready(self._stage_of(sender.peer))
            case Received(sender=sender, message=LoadProgress() as progress):
                return self._progressed(self._stage_of(sender.peer), progress, now_s)
            case _:
                raise AssertionError(f"a deployment cannot be told {event!r}")

    # ------------------------------------------------------------ what others may read

    @property
    def is_placed(self) -> bool:
        """Whether its route's nodes are taken."""
        return self.phase != "waiting" and self.route is not None

    def nodes(self) -> tuple[NodeId, ...]:
        """Of its last epoch."""
        return self.route.nodes() if self.route is not None else ()

    def has_stage(self, route: RouteId, epoch: Epoch, peer: PeerId) -> bool:
        """Whether this peer speaks of the present epoch, and is one of its stages."""
        ours = self.route is not None and route == self.route_id and epoch == self.route.epoch
        return ours and any(stage.node.peer == peer for stage in self.stages)

    def heard(self, peer: PeerId, now_s: float) -> None:
        """A stage has given a sign of life."""
        self._stage_of(peer).heard_s = now_s

    @property
    def stages(self) -> list[StagePlacement]:
        return self.route.stages if self.route is not None else []

    def behind(self) -> list[StagePlacement]:
        """The stages that the present phase waits for."""
        return [stage for stage in self.stages if not (stage.loaded if self.phase == "loading" else stage.ready)]

    def check(self) -> None:
        """The invariants. Raises AssertionError; for tests and the simulator."""
        if self.phase == "waiting":
            return
        assert self.route is not None and self.stages, f"{self.phase} without stages"
        layers = [layer for s in self.stages for layer in range(s.share.first_layer, s.share.end_layer)]
        assert layers == list(range(self.described.spec.n_layers)), "the shares do not tile the layers"
        assert len(set(self.nodes())) == len(self.stages), "one node has two stages"
        if self.phase in ("activating", "ready"):
            assert all(stage.loaded is not None for stage in self.stages) and self.route.kv_blocks > 0
        assert self.phase != "ready" or not self.behind(), "ready before its stages"

    # ------------------------------------------------------------ inside

    def _move(self, cause: Cause, phase: DeploymentPhase) -> None:
        TRANSITIONS.step(self.phase, cause, phase)
        self.phase = phase

    def _stage_of(self, peer: PeerId) -> StagePlacement:
        return next(stage for stage in self.stages if stage.node.peer == peer)

    def _deploy(self, deploy: Deploy, now_s: float) -> list[Effect]:
        former, draft = self.nodes(), deploy.draft
        effects = self._down(death=False)
        self.route = route = Route(
            route=self.route_id,
            epoch=deploy.epoch,
            dtype=draft.dtype,
            stages=[StagePlacement(share, deploy.present[share.node], heard_s=now_s) for share in draft.shares],
        )
        self._move(Deploy, "loading")
        effects.append(self._watch(now_s))
        dropped = [deploy.present[name] for name in former if name not in route.nodes() and name in deploy.present]
        effects += stage_orders.drop(self.route_id, deploy.epoch, dropped)
        effects += [
            stage_orders.load(
                self.described,
                route,
                stage,
                tensors=self.ranges(self.described, stage.share.first_layer, stage.share.end_layer),
                sources=deploy.sources[stage.share.node],
                block_size=self.policy.engine.block_size,
            )
            for stage in route.stages
        ]
        return effects

    def _halt(self, death: bool) -> list[Effect]:
        effects = self._down(death=death)
        self._move(Halt, "waiting")
        return effects

    def _down(self, *, death: bool) -> list[Effect]:
        if self.phase != "ready":
            return []
        return [Tell(BROKER_NAME, RouteDown(model_id=self.model_id, route=self.route_id, death=death))]

    def _watch(self, now_s: float) -> Effect:
        return SetTimer(("silence", self.route_id), now_s + SILENT_S[self.phase])

    def _progressed(self, stage: StagePlacement, progress: LoadProgress, now_s: float) -> list[Effect]:
        stage.heard_s = now_s
        stage.bytes_done, stage.bytes_total, stage.phase = progress.bytes_done, progress.bytes_total, progress.phase
        load = NodeLoad(
            node_id=stage.share.node,
            state=progress.phase,
            bytes_done=progress.bytes_done,
            bytes_total=progress.bytes_total,
        )
        return [LoadMoved(self.model_id, load)]

    def _slice_loaded(self, stage: StagePlacement, loaded: SliceLoaded, now_s: float) -> list[Effect]:
        stage.loaded = loaded
        if self.phase != "loading" or self.behind():
            return []
        route = self.route
        assert route is not None
        try:
            route.kv_blocks, route.max_model_len = pool_size(
                self.described.spec,
                route,
                self.policy.model.max_model_len,
                self.policy.engine.block_size,
                self.policy.engine.max_running,
            )
        except RefusalError as error:
            return [Overfull(error.refusal)]
        self._move(SliceLoaded, "activating")
        for each in route.stages:
            each.heard_s = now_s
        return [self._watch(now_s), *stage_orders.activate(route, self.results_addr)]

    def _stage_ready(self, stage: StagePlacement) -> list[Effect]:
        stage.ready = True
        if self.phase != "activating" or self.behind():
            return []
        self._move(Ready, "ready")
        self.reason = ""
        return [CancelTimer(("silence", self.route_id)), CameUp()]
