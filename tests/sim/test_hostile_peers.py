"""Peers that never greeted, that speak out of their role, or that say well-formed sentences with numbers out of all
reason: nothing is killed, nobody but the offender loses a membership, and an answer under way comes whole.

They speak past the wire, into the post office, so that a hundred thousand sentences cost seconds.
"""

import random
import typing

import attrs
import pytest
import trio

from hydra.actors.client import GenerateRequest
from hydra.actors.core.authority import ANYBODY, SPEAKERS, THE_COORDINATOR
from hydra.actors.core.gateway import ACCEPTS, Gateway
from hydra.actors.core.host import ActorHost
from hydra.actors.core.identity import Identity
from hydra.actors.core.membership import Greet, Member
from hydra.actors.families.frontend import Frontend, FrontendParts
from hydra.actors.families.supervisor import Began, ChildPlan, ChildStarted, Supervisor
from hydra.actors.membership.registry import TERM_JUMP_MAX
from hydra.actors.sessions.sessions import StartGeneration
from hydra.actors.stage.stage import Activated, Publish, RunActivate, RunLoad, SliceIn, Stage, ThreadFenced
from hydra.protocol import codec, codec_data
from hydra.protocol.batch import StepResult
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.faults import TheyBrokeTheRules
from hydra.protocol.ids import COORDINATOR, Epoch, Generation, NodeId, RouteId, SessionId, StepId
from hydra.protocol.messages.generations import Open
from hydra.protocol.messages.membership import (
    PROTOCOL_VERSION,
    ChildExited,
    DeviceOffer,
    Goodbye,
    Heartbeat,
    Hello,
    StageProgress,
    Welcome,
)
from hydra.protocol.messages.models import CancelJob, JobsRequest, LoadModel, Rebalance, StatusRequest, UnloadModel
from hydra.protocol.messages.plans import RouteBroken
from hydra.protocol.model.load_report import SliceFacts
from hydra.protocol.model.model_spec import ModelSpec
from hydra.protocol.sampling import GREEDY, SamplingParams
from hydra.protocol.wires.wire import Delivery
from hydra.simulation.pocket_model import MODEL_ID, pocket_spec
from hydra.simulation.shape import Shape
from hydra.simulation.world import World, open_world
from tests.extremes import Extremes, or_many

DOORS = {kind: door for door, kinds in ACCEPTS.items() for kind in kinds}
TO_COORDINATOR = [kind for kind, speakers in SPEAKERS.items() if speakers <= ANYBODY]
FROM_COORDINATOR = [kind for kind, speakers in SPEAKERS.items() if speakers == THE_COORDINATOR]
EVIL = ("worker", "frontend", "parent")
NO_ROOM = DeviceOffer(device="cpu", name="evil", dtypes=("float32",), memory_total_bytes=0, memory_free_bytes=0)
OPEN = Open(
    session=SessionId(1), attempt=0, model_id=MODEL_ID, history=[1, 2], prompt_tokens=2, max_tokens=5,
    params=attrs.evolve(GREEDY, logit_bias=((3, 1.0),)), stop_ids=(7,),
)  # fmt: skip
FRONTENDS_MAY = (StatusRequest, Open, Rebalance, LoadModel, UnloadModel, JobsRequest, CancelJob)


def hello(role: str) -> Hello:
    worker = {"device": NO_ROOM, "pipeline_addr": Endpoint("mem://evil:1")} if role == "worker" else {}
    return Hello(
        node_id=f"evil-{role}",
        role=role,
        version=PROTOCOL_VERSION,
        auth="",
        host="there",
        pid=666,
        term_seen=0,
        family="evil",
        **worker,
    )


@attrs.define(eq=False)
class Cuckoo:
    """Speaks to a world's coordinator under any name."""

    world: World

    def says(self, peer: str, message: typing.Any, to: str | None = None) -> None:
        door = to or DOORS[type(message)]
        self.sends(peer, codec.encode(door, "asks", message))

    def sends(self, peer: str, frames: list[bytes]) -> None:
        coordinator = self.world.coordinator
        coordinator._gateway._deliver(coordinator.actor_host, Delivery(peer, tuple(frames)))

    def greets(self, role: str) -> None:
        self.says(f"evil-{role}-1", hello(role))

    @property
    def honest(self) -> dict[str, int]:
        members = self.world.coordinator.registry.members()
        return {m.hello.node_id: m.generation for m in members if m.hello.node_id in self.world.nodes}

    def generation(self, role: str) -> Generation:
        members = self.world.coordinator.registry.members()
        return next((m.generation for m in members if m.hello.node_id == f"evil-{role}"), Generation(0))


def listen(world: World) -> list[tuple[str, typing.Any]]:
    """From now on, what the coordinator says to whom."""
    said: list[tuple[str, typing.Any]] = []
    post, dispatch = world.coordinator._gateway, world.coordinator._gateway.dispatch

    def heard(peer, frames):
        said.append((peer, codec.decode(frames).message))
        dispatch(peer, frames)

    post.dispatch = heard
    return said


def attacks(world: World) -> list[typing.Any]:
    """What those did who were not let in, or not for this."""
    node = world.nodes["w1"]
    return [
        StatusRequest(ask=1),
        OPEN,
        Rebalance(ask=2),
        LoadModel(ask=3, model_path="/etc", wait=False),
        UnloadModel(ask=4, model_id=MODEL_ID),
        JobsRequest(ask=5),
        CancelJob(ask=6, job="load-1-1"),
        ChildExited(node_id=NodeId("w1"), pid=node.pid, how="signal 9"),
        RouteBroken(route=RouteId(1), epoch=world.epoch(), why="because I say so", side="in"),
        Goodbye(generation=Cuckoo(world).honest["w1"], why="for somebody else"),
    ]


async def test_a_peer_that_never_greeted_gets_nothing_and_moves_nothing(autojump_clock):
    async with open_world(Shape(workers=2)) as world:
        await world.until_ready()
        chat = world.chat([1, 2, 3], max_tokens=30)
        await chat.until(3)
        cuckoo, epoch, said = Cuckoo(world), world.epoch(), listen(world)
        honest, planned = cuckoo.honest, world.coordinator.planner.number
        for peer in ("nobody-1", "coordinator", "(probe)"):
            for attack in attacks(world):
                cuckoo.says(peer, attack)
        assert [peer for peer, _ in said if peer in ("nobody-1", "coordinator", "(probe)")] == []
        assert (world.epoch(), cuckoo.honest, world.coordinator.planner.number) == (epoch, honest, planned)
        assert world.coordinator._gateway.forbidden == 9 + 10 + 10, "a stranger's goodbye is no news"
        cuckoo.says("nobody-1", Heartbeat(generation=Generation(5), memory_free_bytes=0, stale_dropped=0))
        assert [type(message).__name__ for peer, message in said if peer == "nobody-1"] == ["SayHello"]
        await chat.finished()
        world.check(chat)
        status = await world.frontend().status()
        forbidden = next(s.value for s in status.samples if s.name == "hydra_forbidden_messages_total")
        assert forbidden == 29 and {node.node_id for node in status.nodes} == {"w1", "w2"}


@pytest.mark.parametrize(
    ("role", "may"),
    [
        ("worker", ()),
        ("parent", ()),
        ("frontend", (StatusRequest, Open, Rebalance, LoadModel, UnloadModel, JobsRequest, CancelJob)),
    ],
)
async def test_a_member_speaks_in_its_role_and_of_its_own(autojump_clock, role, may):
    async with open_world(Shape(workers=2)) as world:
        await world.until_ready()
        cuckoo, epoch = Cuckoo(world), world.epoch()
        honest, planned = cuckoo.honest, world.coordinator.planner.number
        cuckoo.greets(role)
        for attack in attacks(world):
            if type(attack) not in may:
                cuckoo.says(f"evil-{role}-1", attack)
        assert (world.epoch(), cuckoo.honest, world.coordinator.planner.number) == (epoch, honest, planned)
        assert cuckoo.generation(role), "and it is a member still"


def hints_for(world: World, role: str) -> dict[typing.Any, list[typing.Any]]:
    generation, epoch = Cuckoo(world).generation(role), world.epoch() or Epoch(1, 1)
    progress = StageProgress(route=RouteId(1), epoch=epoch, accepted=StepId(1), sent=StepId(1))
    return {
        Hello: [hello(role)],
        Open: [OPEN, attrs.evolve(OPEN, attempt=1, session=SessionId(2), deaths=2)],
        Heartbeat: [Heartbeat(generation=generation, memory_free_bytes=1, stale_dropped=1, progress=(progress,))],
        LoadModel: [LoadModel(ask=1, model_path="/models/other", model_id="other", total_layers=6, wait=False)],
        Generation: [generation],
        Epoch: [epoch],
        RouteId: [RouteId(1)],
        SamplingParams: [GREEDY],
        NodeId: [NodeId("w1"), NodeId(f"evil-{role}")],
    }


def _within_its_rights(frames: list[bytes], term: int) -> bool:
    """What a member may do to the others: a frontend takes a model away, and whoever has seen a later term is believed
    within reason, which makes everybody greet again.
    """
    try:
        message = codec.decode(frames).message
    except TheyBrokeTheRules:
        return False
    if isinstance(message, Hello):
        return term <= message.term_seen < term + TERM_JUMP_MAX
    return isinstance(message, UnloadModel) and message.model_id == MODEL_ID


@pytest.mark.parametrize("n_sentences", or_many(300, 100_000))
async def test_no_sentence_kills_the_coordinator_or_harms_another_member(autojump_clock, n_sentences):
    rng = random.Random(17)
    async with open_world(Shape(workers=2), seed=17) as world:
        await world.until_ready()
        cuckoo, post = Cuckoo(world), world.coordinator._gateway
        honest = cuckoo.honest
        for number in range(n_sentences):
            if number % 200 == 0:
                chat = world.chat([1, 2, 3], max_tokens=12)
                await chat.until(2)
                for role in EVIL:
                    cuckoo.greets(role)
            role = rng.choice((*EVIL, "stranger"))
            kind = rng.choice([kind for kind in TO_COORDINATOR if role == "stranger" or role in SPEAKERS[kind]])
            extremes = Extremes(rng, hints_for(world, role if role != "stranger" else "worker"))
            frames = extremes.sentence(kind, DOORS[kind])
            if _within_its_rights(frames, world.coordinator.registry.term):
                continue
            cuckoo.sends(f"evil-{role}-1", frames)
            assert post.contained == 0, f"sentence {number}, a {kind.__name__}, made an actor raise"
            if number % 40 == 39:
                await trio.sleep(0.02)
                await world.frontend().status()
            if number % 200 == 199:
                await chat.finished()
                world.check(chat)
        await trio.sleep(6.0)  # the evil ones are silent, and lost
        assert cuckoo.honest == honest and not world.faults
        assert post.forbidden and post.malformed, "some of it came through to each of the doors"
        await world.until_ready()
        last = world.chat([4, 5, 6], max_tokens=5)
        await last.finished()
        world.check(last)


def _result(extremes: Extremes, epoch: Epoch, step: int) -> list[bytes]:
    n_rows = extremes.rng.choice((0, 1, 2))
    columns = {name: extremes.column(n_rows) for name in ("row", "attempt", "position", "token", "fault")}
    logprobs = extremes.logprobs(extremes.rng.choice((0, 1, 3))) if extremes.rng.random() < 0.5 else None
    result = StepResult(route=RouteId(1), epoch=epoch, step=step, logprobs=logprobs, **columns)
    result.out_of_memory = extremes.rng.random() < 0.2
    return [bytes(frame) for frame in codec_data.encode_result(result)]


@pytest.mark.parametrize("n_results", or_many(150, 20_000))
async def test_no_result_kills_the_coordinator(autojump_clock, n_results):
    rng = random.Random(23)
    async with open_world(Shape(workers=2), seed=23) as world:
        await world.until_ready()
        honest, extremes = Cuckoo(world).honest, Extremes(rng)
        for number in range(n_results):
            extremes.wild = rng.choice((0.0, 0.0, 0.1))
            if number % 20 == 0:
                world.chat([1, 2, 3], max_tokens=3, params=SamplingParams(logprobs=2, temperature=0.0))
                await trio.sleep(0.006)
            model = world.coordinator.broker._models[MODEL_ID]
            flights = [flight for route in model.routes.values() for flight in route.scheduler.flights]
            step = flights[0].step if flights and rng.random() < 0.7 else rng.choice((1, 2**40, 2**63 - 1))
            world.coordinator._take_result(_result(extremes, world.epoch(), step))
            assert world.coordinator._gateway.contained == 0, f"result {number} made an actor raise"
        await trio.sleep(1.0)
        assert Cuckoo(world).honest == honest and not world.faults


class Quiet:
    """A spoke to nobody."""

    peer = "me-1"

    def send_nowait(self, frames):
        pass

    async def receive(self):
        await trio.sleep_forever()


class _Child:
    """A worker's actors without its compute: what they order is done at once, in name."""

    def __init__(self):
        self.post = Gateway(lambda peer, frames: None, None, "member")
        self.host = ActorHost("me-1", self.post.carry)
        identity = Identity(node_id=NodeId("evil-worker"), role="worker", host="there", pid=666)
        self.host.add("member", Member(identity, ("stage",)), self.perform)
        self.host.add("stage", Stage(), self.perform)
        plans = (ChildPlan(name=NodeId("w1"), role="worker", vital=False),)
        self.host.add("parent", Supervisor(plans, random.Random(1)), lambda effect: None)
        self.host.post("parent", Began())
        self.host.post("parent", ChildStarted(NodeId("w1"), 100))
        self.host.post("member", Greet())

    def perform(self, effect):
        match effect:
            case Publish(fence=fence) if not fence.open:
                self.host.post("stage", ThreadFenced(fence.route, fence.epoch))
            case RunLoad(order=order):
                facts = SliceFacts(weight_bytes=1, read_bytes=1, kv_blocks_max=9, load_s=0.0)
                self.host.post("stage", SliceIn(order.route, order.epoch, facts))
            case RunActivate(route=route, epoch=epoch):
                self.host.post("stage", Activated(route, epoch))


def _frontend() -> tuple[Gateway, ActorHost]:
    identity = Identity(node_id=NodeId("f1"), role="frontend", host="here", pid=1)
    frontend = Frontend(FrontendParts(identity=identity, spoke=Quiet()))
    request = GenerateRequest(model_id=MODEL_ID, prompt=[1, 2], max_tokens=2**20, params=GREEDY, stop_ids=())
    frontend.actor_host.post("member", Greet())
    for session in range(1, 4):
        frontend.actor_host.post("sessions", StartGeneration(SessionId(session), request))
    return frontend.membership.gateway, frontend.actor_host


@pytest.mark.parametrize(
    "n_sentences", [400, pytest.param(40_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
async def test_no_sentence_kills_a_worker_a_parent_or_a_frontend(autojump_clock, n_sentences):
    rng = random.Random(29)
    child = _Child()
    welcome = Welcome(generation=Generation(9), term=1, heartbeat_s=0.5, results_addr=Endpoint("mem://results"))
    hints = {
        RouteId: [RouteId(1)], Epoch: [Epoch(1, 1), Epoch(1, 2)], Generation: [Generation(9)], NodeId: [NodeId("w1")],
        Welcome: [welcome], ModelSpec: [pocket_spec(2)], SessionId: [SessionId(1), SessionId(2)],
    }  # fmt: skip
    for post, host in ((child.post, child.host), _frontend()):
        kinds = [kind for kind in FROM_COORDINATOR if host.has(DOORS[kind])]
        for number in range(n_sentences):
            kind = rng.choice(kinds)
            frames = Extremes(rng, hints).sentence(kind, DOORS[kind])
            post._deliver(host, Delivery(COORDINATOR, tuple(frames)))
            assert post.contained == 0, f"sentence {number}, a {kind.__name__}, made an actor raise"
            if number % 20 == 19:
                await trio.sleep(rng.choice((0.1, 2.0, 40.0)))
                host._fire(trio.current_time())
        assert 0 < post.malformed < n_sentences
