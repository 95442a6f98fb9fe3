"""The coordinator's family: registry, planner, broker and status in one host, with the sockets between them.

Everything from outside is handed in: wires, the library that reads model directories, where state is kept. The same
function runs in a process of its own and inside the simulator.
"""

import math
from collections.abc import Awaitable, Callable

import attrs
import structlog
import trio

from hydra.actors.core.gateway import Gateway
from hydra.actors.core.host import ActorHost
from hydra.actors.core.journal_outbox import LogEntry
from hydra.actors.core.machine import Effect
from hydra.actors.core.names import BROKER, JOURNAL, MEMBER, PLANNER, REGISTRY, STATUS
from hydra.actors.core.ports import Library
from hydra.actors.families.coordinator_journal import CoordinatorJournal
from hydra.actors.families.journal_keeper import JournalKeeper
from hydra.actors.families.journal_log import log_entry
from hydra.actors.families.status import ClusterStatus
from hydra.actors.families.store_server import StoreServer
from hydra.actors.membership.dialling import dial_all
from hydra.actors.membership.registry import Broadcast, NotLetIn, Opened, Registry
from hydra.actors.planning.desired_model import (
    CheckSource,
    Describe,
    DesiredModel,
    DesiredModelFailed,
    LoadMoved,
    ModelNoted,
    NodeNoted,
    NotDescribed,
    Recover,
    SaveState,
    SourceChecked,
    WasDescribed,
)
from hydra.actors.planning.plan_settings import PlanSettings
from hydra.actors.planning.planner import Planner
from hydra.actors.planning.reach import DialledOut, DialOut
from hydra.actors.scheduling.broker import Broker
from hydra.actors.scheduling.data_link import CloseLink, LinkFull, OpenLink, SendStep, StepBack
from hydra.protocol import codec, codec_data
from hydra.protocol.blob import Frames
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.faults import TheyBrokeTheRules, WireError
from hydra.protocol.ids import COORDINATOR, AskId, Epoch, NodeId, RouteId
from hydra.protocol.messages.models import NodeLoad, Sample
from hydra.protocol.messages.plans import RouteBroken
from hydra.protocol.model.model_spec import Described
from hydra.protocol.refusal import Refusal, RefusalError
from hydra.protocol.settings.cluster import ClusterSettings
from hydra.protocol.settings.engine import EngineSettings
from hydra.protocol.settings.model import ModelSettings
from hydra.protocol.wires.wire import (
    CommandHub,
    DataLane,
    Dialler,
    StepLink,
    StepSource,
    WireFull,
    link_bound,
)

log = structlog.get_logger()
SHOW_EVERY_S = 3.0


@attrs.frozen(kw_only=True)
class SavedState:
    """What outlives a coordinator: the term, the models that should be there, and who computed them last.

    `anew`: a new `up` has started since, with workers of its own; the first word that is saved ends that.
    """

    term: int = 0
    desired: tuple[DesiredModel, ...] = ()
    nodes: tuple[NodeId, ...] = ()
    anew: bool = False

    @property
    def first_life(self) -> bool:
        """Of this `up`: its workers are only starting."""
        return self.anew or not self.nodes


@attrs.frozen(kw_only=True)
class CoordinatorParts:
    """The world, as the coordinator needs it."""

    hub: CommandHub
    lane: DataLane
    results: StepSource
    library: Library
    describe: Callable[[str], Awaitable[Described]]  # the library's, off the loop; raises RefusalError
    check_source: Callable[[Described], Awaitable[str]]  # the same; why its files cannot be read now, or empty
    dial: Dialler
    saved: SavedState
    save: Callable[[SavedState], None]  # never raises; see KeptState
    on_wish_failed: Callable[[Refusal], None]  # a model wished for at start; the process may give up
    expected_workers: int
    patience_s: float
    local_nodes: tuple[NodeId, ...] = ()  # workers that start with this coordinator: none other stands in for them
    nodes_s: float = math.inf  # for the nodes of a former life; see Recover
    cluster: ClusterSettings = attrs.field(factory=ClusterSettings)
    engine: EngineSettings = attrs.field(factory=EngineSettings)
    model: ModelSettings = attrs.field(factory=ModelSettings)
    pid: int = 0
    wall_s: float = 0.0  # when it began, since 1970
    store: StoreServer | None = None  # lends the files of described models
    samples: Callable[[], tuple[Sample, ...]] = tuple  # what its process counts beside its actors


@attrs.define(eq=False)
class Coordinator:
    """Builds the host and performs the effects that only a coordinator knows."""

    parts: CoordinatorParts
    actor_host: ActorHost = attrs.field(init=False)
    registry: Registry = attrs.field(init=False)
    planner: Planner = attrs.field(init=False)
    broker: Broker = attrs.field(init=False)
    journal: JournalKeeper = attrs.field(init=False)
    _gateway: Gateway = attrs.field(init=False)
    _links: dict[RouteId, tuple[Epoch, StepLink]] = attrs.field(factory=dict, init=False)
    _nursery: trio.Nursery | None = attrs.field(default=None, init=False)
    _shown: dict[tuple[str, str, str], float] = attrs.field(factory=dict, init=False)  # progress lines: the last one

    def __attrs_post_init__(self) -> None:
        parts = self.parts
        term = parts.saved.term + 1
        self.registry = Registry(
            term=term,
            results_addr=Endpoint(parts.results.addr),
            cluster=parts.cluster,
            host_of=parts.hub.host_of,
        )
        self.planner = Planner(
            term=term,
            policy=PlanSettings(cluster=parts.cluster, engine=parts.engine, model=parts.model),
            ranges=parts.library.slice_ranges,
            results_addr=Endpoint(parts.results.addr),
            wall_s=int(parts.wall_s),
            store_addr=Endpoint(parts.store.hub.addr) if parts.store is not None else None,
        )
        self.broker = Broker(limits=parts.engine)
        self._gateway = Gateway(parts.hub.send_nowait, parts.hub.receive, REGISTRY.actor, self.registry.speaker_of)
        self.journal = JournalKeeper(parts.wall_s, self.registry.name_of)
        status = ClusterStatus(
            self.registry,
            self.planner,
            self.broker,
            parts.pid,
            lambda: self._gateway.malformed,
            self._samples,
            self.journal.losses,
        )
        observe = CoordinatorJournal(self.registry, self._model_of, lambda: self.broker.stale_dropped)
        self.actor_host = ActorHost(COORDINATOR, self._gateway.carry, observe)
        self.actor_host.add(JOURNAL.actor, self.journal, self._perform)
        self.actor_host.add(REGISTRY.actor, self.registry, self._perform)
        self.actor_host.add(PLANNER.actor, self.planner, self._perform)
        self.actor_host.add(BROKER.actor, self.broker, self._perform)
        self.actor_host.add(STATUS.actor, status, self._perform)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        saved = self.parts.saved
        try:
            async with trio.open_nursery() as self._nursery:
                first = saved.first_life
                begin = Recover(
                    saved.desired,
                    self.parts.expected_workers if first else 0,
                    saved.nodes,
                    self.parts.patience_s,
                    self.parts.nodes_s,
                    local=self.parts.local_nodes if first else (),
                )
                self.actor_host.post(PLANNER.actor, begin)
                self.actor_host.post(REGISTRY.actor, Opened())
                self._nursery.start_soon(self.actor_host.keep_timers)
                self._nursery.start_soon(self._gateway.pump, self.actor_host)
                self._nursery.start_soon(self._take_results)
                if self.parts.store is not None:
                    self._nursery.start_soon(self.parts.store.run)
                task_status.started()
        finally:
            for _, link in self._links.values():
                link.close()

    def _samples(self) -> tuple[Sample, ...]:
        """What is counted beside the actors."""
        store = self.parts.store.samples() if self.parts.store is not None else ()
        return (*self._gateway.samples(), *self.journal.samples(), *store, *self.parts.samples())

    def _model_of(self, route_id: RouteId) -> str:
        """Of a route that is planned; empty when it is gone."""
        routes = self.planner.models()
        return next((model_id for model_id, _, route in routes if route is not None and route.route == route_id), "")

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Broadcast(beacon=beacon):
                self.parts.hub.broadcast_nowait(codec.encode(MEMBER, REGISTRY.actor, beacon))
            case SendStep():
                self._send_step(effect)
            case OpenLink():
                self._open_link(effect)
            case CloseLink(route=route):
                self._close_link(route)
            case SaveState(term=term, desired=desired, nodes=nodes):
                self.parts.save(SavedState(term=term, desired=desired, nodes=nodes))
            case DesiredModelFailed(refusal=refusal):
                log.error("the model cannot be served", code=refusal.code, why=refusal.message)
                self.parts.on_wish_failed(refusal)
            case LoadMoved(model_id=model_id, load=load):
                self._show(model_id, load)
            case Describe(model_path=path):
                assert self._nursery is not None
                self._nursery.start_soon(self._describe, path)
            case CheckSource(model_id=model_id, described=described):
                assert self._nursery is not None
                self._nursery.start_soon(self._check_source, model_id, described)
            case DialOut(ask=ask, addrs=addrs):
                assert self._nursery is not None
                self._nursery.start_soon(self._dial_out, ask, addrs)
            case LogEntry(entry=entry):
                log_entry(entry)
            case NotLetIn() | NodeNoted():
                pass  # the journal has them
            case ModelNoted(model_id=model_id, reason=reason):
                log.warning("a model stays as it is", model=model_id, why=reason)
            case _:
                raise AssertionError(f"a coordinator cannot do {effect!r}")

    def _show(self, model_id: str, load: NodeLoad) -> None:
        """A line per node every few seconds, and one when a phase is over."""
        key, now_s = (model_id, load.node_id, load.state), trio.current_time()
        over = load.bytes_done >= load.bytes_total
        if not over and now_s - self._shown.get(key, -SHOW_EVERY_S) < SHOW_EVERY_S:
            return
        self._shown[key] = now_s
        if over:
            del self._shown[key]
        done, total = (f"{size / 1e6:.1f} MB" for size in (load.bytes_done, load.bytes_total))
        log.info(load.state, model=model_id, node=load.node_id, done=done, total=total)

    def _open_link(self, effect: OpenLink) -> None:
        self._close_link(effect.route)
        try:
            link = self.parts.lane.step_link(effect.addr, link_bound(effect.credits))
        except WireError as error:
            log.warning("the first stage cannot be reached", addr=str(effect.addr), why=str(error))
            self.actor_host.post(BROKER.actor, LinkFull(effect.route, effect.epoch))
        else:
            self._links[effect.route] = (effect.epoch, link)

    def _send_step(self, effect: SendStep) -> None:
        step = effect.step
        if step.route not in self._links:
            return  # there was no way to open one, and the epoch ends for it
        epoch, link = self._links[step.route]
        assert epoch == step.epoch, "a step of an epoch whose link is not open"
        try:
            link.send_nowait(codec_data.encode_step(step))
        except WireFull:
            self.actor_host.post(BROKER.actor, LinkFull(step.route, step.epoch))

    def _close_link(self, route: RouteId) -> None:
        _, link = self._links.pop(route, (None, None))
        if link is not None:
            link.close()

    async def _describe(self, path: str) -> None:
        try:
            described = await self.parts.describe(path)
        except RefusalError as error:
            self.actor_host.post(PLANNER.actor, NotDescribed(path, error.refusal))
        else:
            self.actor_host.post(PLANNER.actor, WasDescribed(path, described))

    async def _check_source(self, model_id: str, described: Described) -> None:
        self.actor_host.post(PLANNER.actor, SourceChecked(model_id, await self.parts.check_source(described)))

    async def _dial_out(self, ask: AskId, addrs: tuple[Endpoint, ...]) -> None:
        self.actor_host.post(PLANNER.actor, DialledOut(ask, await dial_all(self.parts.dial, addrs, ())))

    async def _take_results(self) -> None:
        while True:
            for frames in await self.parts.results.receive():
                self._take_result(frames)

    def _take_result(self, frames: Frames) -> None:
        """One that makes an actor raise ends its epoch, not this process: the sessions open again and lose nothing."""
        try:
            result = codec_data.decode_result(frames)
        except TheyBrokeTheRules as error:
            self._gateway.malformed += 1
            log.warning("malformed result", why=str(error))
            return
        try:
            self.actor_host.post(BROKER.actor, StepBack(result))
        except Exception:
            self._gateway.contained += 1
            log.exception("an actor raised at a result", route=result.route, step=result.step)
            reason = "a result made an actor raise; see the log"
            broken = RouteBroken(route=result.route, epoch=result.epoch, why=reason, side="in")
            self.actor_host.receive(PLANNER.actor, BROKER, broken)
