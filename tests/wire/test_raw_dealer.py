"""A raw socket at a coordinator's door: what it says without having greeted, and what it cannot kill with numbers."""

from functools import partial

import attrs
import msgpack
import pytest
import trio
import zmq

from hydra.actors.core.gateway import ACCEPTS
from hydra.actors.families.coordinator import Coordinator, CoordinatorParts, SavedState
from hydra.actors.planning.deployments import Deployments
from hydra.actors.scheduling.broker import Broker
from hydra.actors.scheduling.data_link import OpenLink, SendStep
from hydra.protocol import codec, codec_data
from hydra.protocol.batch import Batch, Step, StepResult
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Epoch
from hydra.protocol.messages.generations import Open
from hydra.protocol.messages.membership import (
    PROTOCOL_VERSION,
    ChildExited,
    Heartbeat,
    Hello,
    HelloRefused,
    SayHello,
    Welcome,
)
from hydra.protocol.messages.models import (
    CancelJob,
    JobsRequest,
    LoadModel,
    ModelsChanged,
    ReadyRequest,
    Rebalance,
    StatusRequest,
    UnloadModel,
)
from hydra.protocol.messages.plans import RouteBroken
from hydra.protocol.sampling import GREEDY
from hydra.protocol.settings.cluster import ClusterSettings
from hydra.protocol.wires.zmq_wire import ZmqWires
from hydra.simulation.pocket_model import PocketLibrary

HELLO = Hello(
    node_id="e", role="frontend", version=PROTOCOL_VERSION, auth="the token", host="h", pid=1,
    term_seen=0,
)  # fmt: skip
OPEN = Open(
    session=1, attempt=0, model_id="m", history=[1], prompt_tokens=1, max_tokens=1, params=GREEDY, stop_ids=()
)  # fmt: skip
ORDERS = [
    StatusRequest(ask=1), ReadyRequest(ask=2), OPEN, Rebalance(ask=3), LoadModel(ask=4, model_path="/etc", wait=False),
    UnloadModel(ask=5, model_id="m"), JobsRequest(ask=6), CancelJob(ask=7, job="load-1-1"),
    ChildExited(node_id="w0", pid=1, how="signal 9"), RouteBroken(route=1, epoch=Epoch(1, 1), why="so", side="in"),
]  # fmt: skip
DOORS = {kind: door for door, kinds in ACCEPTS.items() for kind in kinds}


@attrs.define(eq=False)
class RawDealer:
    """Speaks frames; waits for answers in a thread."""

    socket: zmq.Socket

    def says(self, message, **fields):
        said = codec.converter.unstructure(message) | fields
        kind = type(message)
        self.socket.send(msgpack.packb((0, DOORS[kind], "me", kind.__name__, said), default=lambda v: v.item()))

    async def hears(self):
        frames = await trio.to_thread.run_sync(partial(self.socket.recv_multipart))
        return codec.decode(frames).message


@pytest.fixture
async def coordinator():
    wires = ZmqWires()
    saved = []
    parts = CoordinatorParts(
        hub=wires.hub("tcp://127.0.0.1:0", "tcp://127.0.0.1:0"),
        lane=wires,
        results=wires.step_source("tcp://127.0.0.1:0", 64),
        library=PocketLibrary(2),
        describe=None,
        check_source=None,
        dial=wires.dial,
        saved=SavedState(),
        save=saved.append,
        on_wish_failed=lambda refusal: None,
        expected_workers=0,
        patience_s=0.0,
        cluster=ClusterSettings(reserved_vram_gb=0.0, join_token="the token"),
    )
    made = Coordinator(parts)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(made.run)
            with trio.fail_after(30):
                yield made, saved
            nursery.cancel_scope.cancel()
    finally:
        wires.close()


@pytest.fixture
def raw(coordinator):
    context, sockets = zmq.Context(), []

    def dealer(name):
        socket = context.socket(zmq.DEALER)
        sockets.append(socket)
        socket.setsockopt(zmq.IDENTITY, name.encode())
        socket.setsockopt(zmq.RCVTIMEO, 20_000)
        socket.connect(coordinator[0].parts.hub.command_addr)
        return RawDealer(socket)

    yield dealer
    for socket in sockets:
        socket.close(linger=0)
    context.term()


async def test_who_never_greeted_is_not_heard_and_numbers_kill_nobody(coordinator, raw):
    made, saved = coordinator
    stranger, impostor = raw("evil~1"), raw("coordinator")
    for order in ORDERS:
        impostor.says(order)
        stranger.says(order)
    impostor.says(HELLO)
    stranger.says(HELLO, auth="a guess")
    assert (await stranger.hears()).refusal.code == "unauthorized", "the first answer: nothing before it had one"
    stranger.says(OPEN)
    stranger.says(Heartbeat(generation=9, memory_free_bytes=0, stale_dropped=0))
    assert isinstance(await stranger.hears(), SayHello)
    assert made._gateway.forbidden >= len(ORDERS) + 1 and made.planner.number == 0 and len(saved) == 1

    stranger.says(HELLO, term_seen=2**32)  # more than a term: not even an answer
    stranger.says(HELLO, term_seen=2**30)
    refused = await stranger.hears()
    assert isinstance(refused, HelloRefused) and refused.refusal.code == "invalid_value"
    stranger.says(HELLO)
    assert isinstance(await stranger.hears(), Welcome) and made.registry.term == 1 and len(saved) == 1
    for field, number in [("session", 2**40), ("attempt", 2**40), ("max_tokens", 2**64 - 1)]:
        stranger.says(OPEN, **{field: number})
    stranger.says(StatusRequest(ask=2**64 - 1))
    stranger.says(StatusRequest(ask=7))
    while isinstance(told := await stranger.hears(), ModelsChanged):
        pass  # a frontend is told that unasked
    counted = {sample.name: sample.value for sample in told.samples}
    assert (
        told.ask == 7
        and counted["hydra_malformed_messages_total"] == 5
        and counted["hydra_contained_faults_total"] == 0
    )


async def test_an_address_that_is_none_ends_an_epoch_and_no_process(coordinator):
    made, _ = coordinator
    made._perform(OpenLink(1, Epoch(1, 1), Endpoint("mem://no-socket:1"), 3))
    made._perform(SendStep(Step(route=1, epoch=Epoch(1, 1), step=1, batch=Batch())))
    assert not made._links


async def test_a_result_that_makes_the_broker_raise_ends_its_epoch_and_no_process(coordinator, monkeypatch):
    made, _ = coordinator
    broken = []

    def raises(broker, result, now_s):
        raise IndexError("a bug of ours")

    def ends(deployments, peer, said, now_s):
        broken.append((said.route, said.epoch))
        return []

    monkeypatch.setattr(Broker, "_step_back", raises)
    monkeypatch.setattr(Deployments, "broken", ends)
    result = StepResult(route=1, epoch=Epoch(1, 1), step=1)
    made._take_result([bytes(frame) for frame in codec_data.encode_result(result)])
    made._take_result([b"nonsense"])
    assert broken == [(1, Epoch(1, 1))] and made._gateway.contained == 1 and made._gateway.malformed == 1
