"""What a worker does with an order's bytes: what is in memory is not looked for again, and a refusal is an answer."""

from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing

from hydra.actors.core.identity import Identity
from hydra.actors.core.machine import Received
from hydra.actors.core.names import PLANNER, STAGE
from hydra.actors.core.ports import SliceFacts
from hydra.actors.families.store_server import StoreServer
from hydra.actors.families.worker import Worker, WorkerParts
from hydra.actors.stage.stage import ThreadFenced
from hydra.protocol import codec
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Epoch, RouteId
from hydra.protocol.messages.plans import Activate, LoadFailed, LoadSlice, Ready, SliceLoaded
from hydra.protocol.model.encoding import F32
from hydra.protocol.model.model_spec import TensorRange
from hydra.protocol.model.source import Directory
from hydra.protocol.refusal import refuse
from hydra.simulation.pocket_model import pocket_spec
from tests.unit.actors.silent_spoke import SilentSpoke

TENSORS = tuple(
    TensorRange(name=f"t{layer}", file="f", offset=layer, length=1, encoding=F32, shape=()) for layer in range(4)
)
FACTS = SliceFacts(weight_bytes=1, read_bytes=0, kv_blocks_max=8, load_s=0.0)


@attrs.define(eq=False)
class Memory:
    """A device that holds the tensors of some layers."""

    layers: set[int]
    loaded: list[LoadSlice] = attrs.field(factory=list)
    activation: Exception | None = None

    def still_to_read(self, order):
        missing = [layer for layer in range(order.first_layer, order.end_layer) if layer not in self.layers]
        return attrs.evolve(order, tensors=tuple(order.tensors[layer] for layer in missing)) if missing else None

    def load(self, order, progress):
        self.loaded.append(order)
        return FACTS

    def drop(self, route):
        self.loaded.clear()

    def activate(self, route, kv_blocks):
        if self.activation is not None:
            raise self.activation


@attrs.define(eq=False)
class Disk:
    """A supply and a lender; `gone` is what it refuses everything with."""

    gone: Exception | None = None
    unlendable: Exception | None = None
    changed: Exception | None = None
    asked: list[LoadSlice] = attrs.field(factory=list)
    lent: list[LoadSlice] = attrs.field(factory=list)

    def ensure(self, order, progress, cancelled):
        self.asked.append(order)
        if self.gone is not None:
            raise self.gone
        return attrs.evolve(order, sources=(Directory("/cache"),))

    def confirm(self, at_hand):
        if self.changed is not None:
            raise self.changed

    def lend_slice(self, order):
        self.lent.append(order)
        if self.unlendable is not None:
            raise self.unlendable


class Spoke(SilentSpoke):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def send_nowait(self, frames):
        self.said.append(codec.decode(frames).message)


async def run_blocking(do, *args):
    return do(*args)


@asynccontextmanager
async def standing_worker(memory, disk):
    spoke = Spoke()
    parts = WorkerParts(
        identity=Identity(node_id="w0", role="worker", host="here", pid=1, pipeline_addr=Endpoint("tcp://here:1")),
        spoke=spoke,
        compute=memory,
        run_blocking=run_blocking,
        dial=None,
        supply=disk,
        store=StoreServer(None, disk, run_blocking),
    )
    worker = Worker(parts)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker._do_chores)

        async def ordered(message):
            """What the planner hears in the end."""
            worker.actor_host.post(STAGE, Received(PLANNER, message))
            worker.actor_host.post(STAGE, ThreadFenced(message.route, message.epoch))
            await trio.testing.wait_all_tasks_blocked()
            return spoke.said[-1]

        yield ordered
        nursery.cancel_scope.cancel()


def order(first=0, end=4, number=1):
    return LoadSlice(
        route=RouteId(1),
        epoch=Epoch(1, number),
        spec=pocket_spec(4),
        dtype="float32",
        first_layer=first,
        end_layer=end,
        tensors=TENSORS,
        sources=(Directory("/gone"),),
        block_size=16,
        kv_memory_bytes=100,
    )


async def test_what_is_in_memory_needs_no_source():
    memory, disk = Memory({0, 1, 2, 3}), Disk(gone=refuse("model_not_found", "there is no /gone on this machine"))
    async with standing_worker(memory, disk) as ordered:
        assert isinstance(await ordered(order()), SliceLoaded)
    assert memory.loaded == [order()] and not disk.asked and not disk.lent


async def test_of_what_is_partly_in_memory_the_rest_is_brought():
    memory, disk = Memory({1, 2}), Disk()
    async with standing_worker(memory, disk) as ordered:
        assert isinstance(await ordered(order()), SliceLoaded)
    (brought,) = disk.asked
    assert brought.tensors == (TENSORS[0], TENSORS[3])
    assert memory.loaded == disk.lent == [attrs.evolve(brought, sources=(Directory("/cache"),))]


async def test_what_is_missing_and_cannot_be_brought_is_refused_as_before():
    memory, disk = Memory({1, 2}), Disk(gone=refuse("model_not_found", "there is no /gone on this machine"))
    async with standing_worker(memory, disk) as ordered:
        reply = await ordered(order())
    assert isinstance(reply, LoadFailed) and reply.refusal.code == "model_not_found" and not memory.loaded


@pytest.mark.parametrize("fault", [FileNotFoundError("/cache"), refuse("bad_model", "a link leads out of it")])
async def test_that_it_cannot_be_lent_is_no_reason_not_to_serve(fault):
    async with standing_worker(Memory(set()), Disk(unlendable=fault)) as ordered:
        assert isinstance(await ordered(order()), SliceLoaded)


async def test_weights_of_files_that_changed_under_the_load_are_held_no_longer():
    memory, disk = Memory(set()), Disk(changed=refuse("bad_model", "f was changed while it was read"))
    async with standing_worker(memory, disk) as ordered:
        reply = await ordered(order())
    assert isinstance(reply, LoadFailed) and reply.refusal.code == "bad_model"
    assert not memory.loaded and not disk.lent


@pytest.mark.parametrize("fault", [None, refuse("does_not_fit", "cpu ran out of memory while making the KV pool")])
async def test_an_activation_without_memory_is_an_answer_and_the_next_epoch_may_do_better(fault):
    memory = Memory({0, 1, 2, 3}, activation=fault)
    async with standing_worker(memory, Disk()) as ordered:
        for number in (1, 2):
            await ordered(order(number=number))
            plan = Activate(
                route=RouteId(1),
                epoch=Epoch(1, number),
                kv_blocks=8,
                next_addr=Endpoint("next"),
                credits=2,
                stage_index=0,
                n_stages=1,
            )
            reply = await ordered(plan)
            if memory.activation is None:
                assert reply == Ready(route=RouteId(1), epoch=Epoch(1, number))
            else:
                assert reply == LoadFailed(route=RouteId(1), epoch=Epoch(1, number), refusal=fault.refusal)
            memory.activation = None
