"""What each process of a simulated cluster does while it lives: the real families over a pretend world."""

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import trio

from hydra.actors.core.identity import Identity
from hydra.actors.core.machine import Received, Send
from hydra.actors.core.names import PARENT, PLANNER, REGISTRY
from hydra.actors.families.coordinator import Coordinator, CoordinatorParts, SavedState
from hydra.actors.families.frontend import Frontend, FrontendParts
from hydra.actors.families.member_host import MemberHost
from hydra.actors.families.worker import Worker, WorkerParts
from hydra.http.app import make_app
from hydra.http.encoders import Encoders
from hydra.http.shutdown import Shutdown
from hydra.protocol.batch import Run
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import NodeId, PeerId
from hydra.protocol.messages.membership import ChildExited, KillWorker, MemberRole
from hydra.protocol.model.model_spec import Described
from hydra.protocol.refusal import Refusal, refuse
from hydra.protocol.settings.cluster import ClusterSettings
from hydra.simulation.inspector import Inspector
from hydra.simulation.memory_wire import MemoryWires
from hydra.simulation.node import Node, StoppableSpoke
from hydra.simulation.plan_watch import PlanWatch
from hydra.simulation.pocket_model import PocketCompute, PocketLibrary
from hydra.simulation.scene import Scene
from hydra.simulation.severed_lanes import SeverableWires
from hydra.simulation.simulated_stage import SimStage
from hydra.text.cache import TokenizerCache
from hydra.text.tokenizer import ModelTokenizer

FAMILY = "one parent's"
BROADCAST_ADDR, COMMAND_ADDR, RESULTS_ADDR = "mem://news", "mem://commands", "mem://results"
LOAD_S, ACTIVATE_S, DESCRIBE_S = 0.4, 0.1, 0.05


async def live_coordinator(scene: Scene, node: Node) -> None:
    shape = scene.shape
    wires = SeverableWires(scene.network, node.name, scene.network.severed)
    library = PocketLibrary(shape.layers)

    async def describe(path: str) -> Described:
        await trio.sleep(DESCRIBE_S)
        return library.describe(path)

    async def there(described: Described) -> str:
        return ""

    def save(state: SavedState) -> None:
        if node.alive and not scene.saves_fail:
            scene.saved = state

    def wish_failed(why: Refusal) -> None:
        if not scene.may_fail:
            scene.faults.append(AssertionError(f"the desired model failed: {why}"))

    node.family = Coordinator(
        CoordinatorParts(
            hub=wires.hub(COMMAND_ADDR, BROADCAST_ADDR),
            lane=wires,
            results=wires.step_source(RESULTS_ADDR, 64),
            library=library,
            describe=describe,
            check_source=there,
            dial=wires.dial,
            saved=scene.saved,
            save=save,
            cluster=ClusterSettings(reserved_vram_gb=0.0),
            engine=shape.engine,
            expected_workers=shape.workers,
            patience_s=4.5,
            pid=node.pid,
            wall_s=trio.current_time(),
            on_wish_failed=wish_failed,
        )
    )
    cell = node.family.actor_host._cells[PLANNER.actor]
    cell.machine = scene.watch = PlanWatch(cell.machine)
    node.family.actor_host.inspect = Inspector(scene.faults).look
    await node.family.run()


async def live_frontend(scene: Scene, node: Node) -> None:
    _, spoke = _spoke(scene, node)
    identity = _identity(node, "frontend")
    parts = FrontendParts(identity=identity, spoke=spoke, max_replays=scene.shape.engine.max_replays)
    node.family = Frontend(parts)
    if scene.shape.http:
        node.app = make_app(
            node.family,
            max_body_bytes=1 << 20,
            shutdown=Shutdown(),
            tokenizers=TokenizerCache(partial(_at_once, ModelTokenizer.load)),
            encoders=Encoders(run_blocking=_at_once),
        )
    node.family.actor_host.inspect = Inspector(scene.faults).look
    await node.family.run()


async def live_worker(scene: Scene, node: Node) -> None:
    shape = scene.shape
    wires, spoke = _spoke(scene, node)
    source = wires.step_source(f"mem://{node.name}:0", 64)
    compute = PocketCompute(shape.memory_bytes, shape.kv_blocks, partial(scene.poisoned, node))
    if (number := int(node.name[1:])) <= len(shape.step_tokens_max):
        compute.tokens_max = shape.step_tokens_max[number - 1]

    async def run_blocking(do: Callable[..., Any], *args: Any) -> Any:
        await trio.sleep(LOAD_S if do == compute.load else ACTIVATE_S)
        while do == compute.load and node.load_fault == "hangs":
            await node.news.wait()
        await node.awake()
        if do == compute.load and node.load_fault == "refused":
            raise refuse("source_unreachable", "what is missing here can be had nowhere")
        return do(*args)

    async def spend(run: Run) -> None:
        await trio.sleep(shape.step_s + shape.token_s * run.batch.n_tokens)
        while node.paused or node.hung:
            await node.news.wait()

    worker = Worker(
        WorkerParts(
            identity=attrs.evolve(_identity(node, "worker"), pipeline_addr=Endpoint(source.addr)),
            spoke=spoke,
            compute=compute,
            run_blocking=run_blocking,
            dial=wires.dial,
        )
    )
    node.family, node.compute = worker, compute
    stage = SimStage(source, wires, worker.line, compute, worker.hear, spend, node.awake)
    worker.wake, worker.progress = stage.wake, stage.progress
    worker.actor_host.inspect = Inspector(scene.faults, beside=(worker.line,)).look
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        nursery.start_soon(stage.run)


async def live_parent(scene: Scene, node: Node) -> None:
    """The supervisor, as far as the coordinator meets it: exits are told, stuck children are killed."""
    _, spoke = _spoke(scene, node)
    membership = MemberHost(spoke, _identity(node, "parent"), siblings=())
    membership.actor_host.add(PARENT, _Parent(), scene.kill_child)
    membership.actor_host.inspect = Inspector(scene.faults).look
    scene.parent = membership.actor_host
    async with trio.open_nursery() as nursery:
        membership.start(nursery)


def _identity(node: Node, role: MemberRole) -> Identity:
    return Identity(node_id=NodeId(node.name), role=role, host="here", pid=node.pid, family=FAMILY)


def _spoke(scene: Scene, node: Node) -> tuple[MemoryWires, StoppableSpoke]:
    wires = SeverableWires(scene.network, node.name, scene.network.severed)
    return wires, StoppableSpoke(wires.spoke(PeerId(f"{node.name}-{node.life}"), COMMAND_ADDR, BROADCAST_ADDR), node)


class _Parent:
    """The machine in a parent: passes on what it sees and what it is told."""

    def handle(self, event: Any, now_s: float) -> list[Any]:
        match event:
            case ChildExited() as exited:
                return [Send(REGISTRY, exited)]
            case Received(message=KillWorker() as order):
                return [order]
            case _:
                return []


async def _at_once(do: Callable[..., Any], *args: Any) -> Any:
    return do(*args)
