"""A whole cluster in one event loop: real actors and real codecs, a pretend network, machine room and parent.

    async with open_world(Shape(workers=3, layers=8), seed=7) as world:
        chat = world.chat([1, 2, 3], max_tokens=20)
        await chat.until(5)
        world.kill("w2", back_after_s=2.0)
        await chat.finished()
        world.check(chat)

A killed node is first cut off, then cancelled: whatever its clean-up still says is not heard, as after SIGKILL.
"""

import math
import random
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal

import attrs
import trio

from hydra.actors.client import GenerateRequest
from hydra.actors.core.gateway import Gateway
from hydra.actors.core.host import ActorHost
from hydra.actors.core.journal_outbox import JournalOutbox
from hydra.actors.core.machine import Received, Send
from hydra.actors.core.membership import Member
from hydra.actors.core.membership import Start as Greet
from hydra.actors.core.names import JOURNAL_NAME, MEMBER, PARENT, PLANNER, REGISTRY
from hydra.actors.families.coordinator import Coordinator, CoordinatorParts, SavedState
from hydra.actors.families.frontend import Frontend, FrontendParts
from hydra.actors.families.worker import ComputeStuck, Worker, WorkerParts
from hydra.actors.planning.desired_model import DesiredModel, Policy
from hydra.actors.scheduling.broker import Limits
from hydra.http.app import make_app
from hydra.http.encoders import Encoders
from hydra.http.shutdown import Shutdown
from hydra.protocol.batch import Run
from hydra.protocol.ids import NodeId, PeerId
from hydra.protocol.messages.journal import JournalEntry, JournalKind, ProcessRole
from hydra.protocol.messages.membership import PROTOCOL_VERSION, ChildExited, Heartbeat, Hello, KillWorker
from hydra.protocol.model.model_spec import Described
from hydra.protocol.refusal import Refusal, RefusalError, refuse
from hydra.protocol.sampling import GREEDY, SamplingParams
from hydra.simulation.asgi_client import exchange
from hydra.simulation.http_reader import read_stream
from hydra.simulation.journal_check import check_journal
from hydra.simulation.memory_network import Life, MemoryNetwork, Pipe, Taken
from hydra.simulation.memory_wire import MemoryWires
from hydra.simulation.plan_watch import PlanWatch
from hydra.simulation.pocket_model import MODEL_ID, MODEL_PATH, PocketCompute, PocketLibrary, pocket_reply
from hydra.simulation.severed_lanes import SeverableWires, Severed
from hydra.simulation.simulated_stage import SimStage
from hydra.text.cache import TokenizerCache
from hydra.text.tokenizer import ModelTokenizer

FAMILY = "one parent's"
COMMANDS, NEWS, RESULTS = "mem://commands", "mem://news", "mem://results"
EXIT_NOTICE_S = 0.01
ROLES: dict[str, ProcessRole] = {"c": "coordinator", "f": "frontend", "w": "worker"}  # of what a parent starts
LOAD_S, ACTIVATE_S, DESCRIBE_S = 0.4, 0.1, 0.05


@attrs.frozen(kw_only=True)
class Shape:
    """What the cluster looks like."""

    workers: int = 2
    layers: int = 6
    frontends: int = 1
    parent: bool = True  # somebody sees children exit and kills those that are stuck
    block_size: int = 4
    kv_blocks: int = 256
    memory_bytes: int = 64_000_000_000  # of each worker; a layer takes 100 MB
    running_max: int = 64
    batch_tokens: int = 0
    prefix_cache: bool = True
    max_replays: int = 20
    step_tokens_max: tuple[int, ...] = ()  # what each worker has memory for in a step, in their order; 0: for any
    http: bool = False  # readers come through the HTTP app, streaming
    model_path: str = MODEL_PATH  # a directory with a tokenizer, for `http`
    step_s: float = 0.004
    token_s: float = 0.0003


@attrs.define(eq=False)
class Node:
    """One life of one process."""

    name: str
    life: int
    pid: int
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    alive: bool = True
    paused: bool = False
    hung: bool = False
    load_fault: Literal["", "refused", "hangs"] = ""  # what comes of loading here
    news: trio.Event = attrs.field(factory=trio.Event)  # paused and hung changed
    family: Any = None  # Coordinator | Frontend | Worker
    app: Any = None  # a frontend's HTTP app
    compute: PocketCompute | None = None

    async def awake(self) -> None:
        while self.paused:
            await self.news.wait()

    def change(self) -> None:
        self.news.set()
        self.news = trio.Event()


@attrs.define(eq=False)
class Chat:
    """One reader and what it has seen."""

    number: int
    prompt: tuple[int, ...]
    max_tokens: int
    params: SamplingParams
    stop_ids: tuple[int, ...]
    frontend: str
    tokens: list[int] = attrs.field(factory=list)
    finish: Literal["stop", "length"] | None = None
    refusal: Refusal | None = None
    left: bool = False
    ends: int = 0
    turned_away: int = 0  # a refusal before the first token that said when to come back
    news: trio.Event = attrs.field(factory=trio.Event)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    @property
    def over(self) -> bool:
        return self.ends > 0

    async def until(self, n_tokens: int) -> None:
        while len(self.tokens) < n_tokens and not self.over:
            await self.news.wait()

    async def finished(self) -> None:
        while not self.over:
            await self.news.wait()

    def leave(self) -> None:
        """The reader walks away."""
        self.scope.cancel()

    def tell(self) -> None:
        self.news.set()
        self.news = trio.Event()


@attrs.define(eq=False)
class _Traced(MemoryNetwork):
    """A network that adds every message that arrives to a running sum, so that two histories can be compared.

    `strikes` says what happens right after the n-th arrival.
    """

    trace: int = 0
    arrivals: int = 0
    severed: Severed = attrs.field(factory=Severed)
    strikes: dict[int, Callable[[], None]] = attrs.field(factory=dict)

    def pipe(
        self,
        source: Life,
        target: Life,
        arrive: Callable[[Taken, Pipe], None],
        bound: int,
        on_break: Callable[[], None] | None,
    ) -> Pipe:
        def traced(frames: Taken, pipe: Pipe) -> None:
            trace = zlib.crc32(repr((trio.current_time(), source.name, target.name)).encode(), self.trace)
            for frame in frames:
                trace = zlib.crc32(frame, trace)
            self.trace = trace
            arrive(frames, pipe)
            self.arrivals += 1
            if self.arrivals in self.strikes:
                self.strikes.pop(self.arrivals)()

        return super().pipe(source, target, traced, bound, on_break)


class _StoppableSpoke:
    """A stopped process says nothing; its timers that come due meanwhile are not heard."""

    def __init__(self, spoke: Any, node: Node) -> None:
        self._spoke, self._node = spoke, node
        self.peer = spoke.peer

    def send_nowait(self, frames: Any) -> None:
        if not self._node.paused:
            self._spoke.send_nowait(frames)

    async def receive(self) -> Any:
        return await self._spoke.receive()

    def close(self) -> None:
        self._spoke.close()


@attrs.define(eq=False)
class World:
    """Operations on a simulated cluster, for tests and stories."""

    shape: Shape
    seed: int
    nursery: trio.Nursery
    rng: random.Random
    network: _Traced
    saved: SavedState
    nodes: dict[str, Node] = attrs.field(factory=dict)
    chats: list[Chat] = attrs.field(factory=list)
    story: list[str] = attrs.field(factory=list)
    faults: list[BaseException] = attrs.field(factory=list)  # processes that died of their own bug
    first_saved: SavedState = attrs.field(init=False)  # what a coordinator knows that finds no state
    saves_fail: bool = False  # nothing is kept
    lasting: set[tuple[str, str]] = attrs.field(factory=set)  # (kind, whom) of faults that no calm ends
    may_fail: bool = False  # loads were made to fail: a model that was wished for may be given up at start
    watch: PlanWatch | None = None
    stale_of_the_dead: int = 0
    contained_in_the_dead: int = 0  # messages that made an actor raise
    deaths: int = 0
    on_poison_back_s: float | None = 0.5  # a parent brings back whom the poison killed; None: nobody does
    _next_pid: int = 100
    _parent: ActorHost | None = None

    def __attrs_post_init__(self) -> None:
        self.first_saved = self.saved

    # ------------------------------------------------------------ what a story may do

    def say(self, line: str) -> None:
        self.story.append(f"{trio.current_time():9.4f}  {line}")

    def kill(self, name: str, back_after_s: float | None = None) -> None:
        """SIGKILL: cut off first, cancelled afterwards. It returns after `back_after_s`; None: never by itself."""
        node = self.nodes[name]
        if not node.alive:
            return
        self.say(f"{name} (pid {node.pid}) is killed")
        node.alive = False
        self.network.kill(name)
        node.scope.cancel()
        self._count_dead(node)
        for chat in self.chats:
            if chat.frontend == name and not chat.over:
                chat.leave()  # whoever holds the connection holds the answer
        if name != "parent" and self._parent is not None:
            self.nursery.start_soon(self._notice, node)
        if back_after_s is not None:
            self.nursery.start_soon(self._return, name, back_after_s)

    def start(self, name: str) -> None:
        """A new life of a node: "coordinator", "parent", "f1" ..., "w1" ..."""
        former = self.nodes.get(name)
        assert former is None or not former.alive
        self._next_pid += 1
        node = Node(name, former.life + 1 if former else 1, self._next_pid)
        if former is not None and ("loads", name) in self.lasting:
            node.load_fault = former.load_fault
        self.nodes[name] = node
        self.say(f"{name} (pid {node.pid}) starts")
        main = {"c": self._coordinator, "p": self._parent_life, "f": self._frontend, "w": self._worker}[name[0]]
        self.nursery.start_soon(self._live, node, main)
        self._write_down("child_started", node)

    def pause(self, name: str, for_s: float | None = None) -> None:
        """SIGSTOP: nothing leaves it, nothing reaches it, nothing in it moves on."""
        node = self.nodes[name]
        if not node.alive or node.paused:
            return
        self.say(f"{name} is stopped")
        node.paused = True
        self.network.pause(name)
        if for_s is not None:
            self.nursery.start_soon(self._later, for_s, partial(self._resume, node))

    def resume(self, name: str) -> None:
        self._resume(self.nodes[name])

    def hang(self, name: str) -> None:
        """Its arithmetic never returns; everything else in it goes on."""
        self.say(f"{name} hangs")
        self.nodes[name].hung = True
        self.nodes[name].change()

    def cut(self, one: str, other: str, for_s: float | None = None) -> None:
        self.say(f"the link between {one} and {other} is cut")
        self.network.cut(one, other)
        if for_s is not None:
            self.nursery.start_soon(self._later, for_s, partial(self.heal, one, other))

    def heal(self, one: str, other: str) -> None:
        """Works again. The sockets noticed meanwhile, so the connections are new ones."""
        self.say(f"the link between {one} and {other} is healed")
        self.network.snap(one, other)
        self.network.heal(one, other)

    def deafen(self, one: str, other: str, for_s: float) -> None:
        """A partition in one direction: what `one` says does not reach `other`."""
        self.say(f"nothing that {one} says reaches {other}")
        self.network.cut(one, other, both=False)
        self.nursery.start_soon(self._later, for_s, partial(self.heal, one, other))

    def sever(self, one: str, other: str, for_s: float = math.inf) -> None:
        """The data lane from `one` to `other` is dead. Everything else between them works."""
        self.say(f"no step gets from {one} to {other}")
        self.network.severed.hops.add((one, other))
        self._for(for_s, ("hop", f"{one} {other}"), partial(self.restore, one, other))

    def restore(self, one: str, other: str) -> None:
        self.say(f"steps get from {one} to {other}")
        self.network.severed.restore(self.network, (one, other))

    def fail_loads(self, name: str, how: Literal["refused", "hangs"], for_s: float = math.inf) -> None:
        """Whatever this worker is told to load it refuses, or never brings to an end."""
        self.say(f"loads of {name} fail: {how}")
        self.may_fail = True
        self.nodes[name].load_fault = how
        self._for(for_s, ("loads", name), partial(self.mend_loads, name))

    def mend_loads(self, name: str) -> None:
        """Of this life or a later one; whoever hangs there goes on."""
        self.say(f"{name} loads again")
        self.nodes[name].load_fault = ""
        self.nodes[name].change()

    def fail_saves(self, for_s: float = math.inf, *, forget: bool = False) -> None:
        """What the coordinator saves is not kept. `forget`: what was kept is gone too."""
        self.say("nothing is saved any more" + (", and nothing is left" if forget else ""))
        self.saves_fail = True
        if forget:
            self.saved = self.first_saved
        self._for(for_s, ("state", ""), self.mend_saves)

    def mend_saves(self) -> None:
        self.say("what is saved is kept again")
        self.saves_fail = False

    def _for(self, for_s: float, lasting: tuple[str, str], mend: Callable[[], None]) -> None:
        if math.isinf(for_s):
            self.lasting.add(lasting)
        else:
            self.nursery.start_soon(self._later, for_s, mend)

    async def rebalance(self, frontend: str = "f1") -> None:
        self.say("somebody asks for a rebalance")
        try:
            await self.frontend(frontend).rebalance()
        except RefusalError as why:
            self.say(f"the rebalance was refused: {why.refusal.message}")

    def chat(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        params: SamplingParams = GREEDY,
        stop_ids: tuple[int, ...] = (),
        frontend: str = "f1",
        leave_after: int | None = None,
    ) -> Chat:
        chat = Chat(len(self.chats) + 1, tuple(prompt), max_tokens, params, stop_ids, frontend)
        self.chats.append(chat)
        self.nursery.start_soon(self._read, chat, leave_after)
        return chat

    def workers(self) -> list[str]:
        return [name for name, node in self.nodes.items() if name.startswith("w") and node.alive]

    def holder_of(self, layer: int) -> str:
        """Who computes a layer, as planned now."""
        for _, _, route in self.coordinator.planner.models():
            for placement in route.stages if route else ():
                if placement.share.first_layer <= layer < placement.share.end_layer:
                    return placement.share.node
        raise LookupError(f"nobody holds layer {layer}")

    @property
    def coordinator(self) -> Coordinator:
        family: Coordinator = self.nodes["coordinator"].family
        return family

    def frontend(self, name: str = "f1") -> Frontend:
        family: Frontend = self.nodes[name].family
        return family

    @property
    def stale_dropped(self) -> int:
        """Steps and results of another epoch that were refused, by everybody so far."""
        alive = [node for node in self.nodes.values() if node.alive]
        return self.stale_of_the_dead + sum(_stale(node) for node in alive)

    async def until_ready(self, within_s: float = 60.0) -> None:
        await self.eventually(lambda: self.phase() == "ready", within_s, "a route is up")

    def phase(self) -> str:
        node = self.nodes["coordinator"]
        models = node.family.planner.models() if node.alive and node.family is not None else ()
        return models[0][1] if models else "none"

    def epoch(self) -> Any:
        """Of the one model's route, or None."""
        return next((route.epoch for _, _, route in self.coordinator.planner.models() if route), None)

    async def eventually(self, holds: Callable[[], bool], within_s: float, what: str) -> None:
        deadline_s = trio.current_time() + within_s
        while not holds():
            assert trio.current_time() < deadline_s, f"not within {within_s} s: {what}"
            await trio.sleep(0.05)

    def calm_down(self) -> None:
        """The end of all faults but those for good: every link works, everybody runs."""
        self.say("calm")
        for one, other in sorted(self.network.severed.hops):
            if ("hop", f"{one} {other}") not in self.lasting:
                self.restore(one, other)
        if self.saves_fail and ("state", "") not in self.lasting:
            self.mend_saves()
        for link in self.network._links.values():
            link.cut, link.drop, link.duplicate = False, 0.0, 0.0
        self.network.default.duplicate = 0.0
        names = sorted(self.nodes)
        for one in names:
            for other in names:
                if one < other and any(self.network.link(*pair).cut for pair in ((one, other), (other, one))):
                    self.heal(one, other)
        self.network.dial_all()
        for name in names:
            node = self.nodes[name]
            if node.paused:
                self._resume(node)
            if node.load_fault and ("loads", name) not in self.lasting:
                self.mend_loads(name)
            if not node.alive:
                self.start(name)

    # ------------------------------------------------------------ what must be true

    def check(self, chat: Chat, spare: bool = False) -> None:
        """The answer is the oracle's, whole, with the right ending, once; `spare`: its end may be an error.

        Where the oracle says that there is no next token, the right ending is the error that says so.
        """
        who = f"chat {chat.number}"
        answer, finish = pocket_reply(chat.prompt, chat.max_tokens, self.shape.layers, chat.stop_ids, chat.params)
        seen = chat.tokens
        assert seen == answer[: len(seen)], f"{who} was told {seen}, the oracle says {answer}"
        assert chat.ends == 1, f"{who} ended {chat.ends} times"
        if not chat.left and not spare:
            ended: str | None = chat.finish
            if finish == "not_finite" and chat.refusal is not None:
                ended = chat.refusal.code
            else:
                assert chat.refusal is None, f"{who} was refused: {chat.refusal}"
            assert (seen, ended) == (answer, finish), f"{who}: {len(seen)} of {len(answer)}, {ended}"

    def check_balance(self) -> None:
        network = self.network
        assert network.sent == network.delivered + network.dropped + network.in_flight, "messages went missing"

    async def settle(self, within_s: float = 75.0) -> None:
        """Nobody asks: nothing may be held for anybody, once the leases of the dead and the stuck ran out."""
        deadline_s = trio.current_time() + within_s
        while True:
            await trio.sleep(0.5)
            try:
                return self.check_quiet()
            except AssertionError:
                if trio.current_time() > deadline_s:
                    raise

    def check_quiet(self) -> None:
        """Nobody asks for anything: nothing may be held for anybody."""
        assert not self.faults, f"a process died of {self.faults[0]!r}"
        assert self.watch is None or not self.watch.tried or not self.watch.repeated, self.watch.repeated
        contained = self.contained_in_the_dead + sum(_contained(node) for node in self.nodes.values() if node.alive)
        assert not contained, f"{contained} messages made an actor raise"
        check_journal(self.coordinator.journal.ring.all())
        broker = self.coordinator.broker
        assert not broker._known and not broker._arrivals, f"the broker still knows {list(broker._known)}"
        for model in broker._models.values():
            assert not model.waiting
            model.waiting.check()
            assert not model.waiting._requests, "a row is counted that is not there"
            if model.engine is not None:
                assert not model.engine.rows and not model.engine.flights, "a row outlived its session"
                model.engine.ledger.check()
                assert model.engine.ledger.blocks_free == model.engine.ledger.blocks_total, "a KV block is held"
        for name, node in self.nodes.items():
            if name.startswith("f"):
                assert len(node.family.sessions) == 0, f"{name} still has sessions"
                assert not node.family._slots
            if name.startswith("w") and node.alive:
                for fence in node.family.line.board.all():
                    open_rows = node.family.line.open_rows(fence.route, fence.epoch) if fence.open else 0
                    assert open_rows == 0, f"{name} has {open_rows} rows open"
        self.check_balance()

    # ------------------------------------------------------------ lives

    async def _live(self, node: Node, main: Callable[[Node], Awaitable[None]]) -> None:
        with node.scope:
            try:
                await main(node)
            except (Exception, BaseExceptionGroup) as why:
                if isinstance(why, BaseExceptionGroup) and why.split(trio.Cancelled)[1] is None:
                    raise
                if node.alive and _cause(why, ComputeStuck):
                    self.say(f"{node.name} gives up: its compute thread is stuck")
                    self.kill(node.name, back_after_s=1.0)
                elif node.alive:  # what a dead one dies of is nobody's business
                    self.say(f"{node.name} died of {why!r}")
                    self.faults.append(why)
                    self.kill(node.name, 0.5)

    def _spoke(self, node: Node) -> tuple[MemoryWires, _StoppableSpoke]:
        wires = SeverableWires(self.network, node.name, self.network.severed)
        return wires, _StoppableSpoke(wires.spoke(PeerId(f"{node.name}-{node.life}"), COMMANDS, NEWS), node)

    async def _coordinator(self, node: Node) -> None:
        shape = self.shape
        wires = SeverableWires(self.network, node.name, self.network.severed)
        library = PocketLibrary(shape.layers)

        async def describe(path: str) -> Described:
            await trio.sleep(DESCRIBE_S)
            return library.describe(path)

        async def there(described: Described) -> str:
            return ""

        def save(state: SavedState) -> None:
            if node.alive and not self.saves_fail:
                self.saved = state

        def wish_failed(why: Refusal) -> None:
            if not self.may_fail:
                self.faults.append(AssertionError(f"the wish failed: {why}"))

        node.family = Coordinator(
            CoordinatorParts(
                hub=wires.hub(COMMANDS, NEWS),
                lane=wires,
                results=wires.step_source(RESULTS, 64),
                library=library,
                describe=describe,
                check_source=there,
                dial=wires.dial,
                saved=self.saved,
                save=save,
                policy=Policy(
                    reserve_bytes=0,
                    block_size=shape.block_size,
                    running_max=shape.running_max,
                ),
                limits=Limits(
                    batch_tokens=shape.batch_tokens, running_max=shape.running_max, prefix_cache=shape.prefix_cache
                ),
                expected_workers=shape.workers,
                patience_s=4.5,
                pid=node.pid,
                wall_s=trio.current_time(),
                on_wish_failed=wish_failed,
            )
        )
        cell = node.family.actor_host._cells[PLANNER.actor]
        cell.machine = self.watch = PlanWatch(cell.machine)
        await node.family.run()

    async def _frontend(self, node: Node) -> None:
        _, spoke = self._spoke(node)
        parts = FrontendParts(
            node_id=NodeId(node.name),
            spoke=spoke,
            host="here",
            pid=node.pid,
            max_replays=self.shape.max_replays,
            family=FAMILY,
        )
        node.family = Frontend(parts)
        if self.shape.http:
            node.app = make_app(
                node.family,
                max_body_bytes=1 << 20,
                shutdown=Shutdown(),
                tokenizers=TokenizerCache(partial(_at_once, ModelTokenizer.load)),
                encoders=Encoders(run_blocking=_at_once),
            )
        await node.family.run()

    async def _worker(self, node: Node) -> None:
        shape = self.shape
        wires, spoke = self._spoke(node)
        source = wires.step_source(f"mem://{node.name}:0", 64)
        compute = PocketCompute(shape.memory_bytes, shape.kv_blocks, partial(self._poisoned, node))
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
                node_id=NodeId(node.name),
                spoke=spoke,
                pipeline_addr=source.addr,
                compute=compute,
                run_blocking=run_blocking,
                dial=wires.dial,
                host="here",
                pid=node.pid,
                family=FAMILY,
            )
        )
        node.family, node.compute = worker, compute
        stage = SimStage(source, wires, worker.line, compute, worker.hear, spend, node.awake)
        worker.wake, worker.progress = stage.wake, stage.progress
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            nursery.start_soon(stage.run)

    async def _parent_life(self, node: Node) -> None:
        """The supervisor, as far as the coordinator meets it: exits are told, stuck children are killed."""
        _, spoke = self._spoke(node)
        post = Gateway(lambda _, frames: spoke.send_nowait(frames), spoke.receive, MEMBER)
        actor_host = ActorHost(spoke.peer, post.carry)

        def greet(term: int) -> Hello:
            return Hello(
                node_id=NodeId(node.name),
                role="parent",
                version=PROTOCOL_VERSION,
                auth="",
                family=FAMILY,
                host="here",
                pid=node.pid,
                term_seen=term,
            )

        def beat(generation: Any) -> Heartbeat:
            return Heartbeat(generation=generation, memory_free_bytes=0, stale_dropped=0)

        actor_host.add(MEMBER, Member(greet=greet, beat=beat, siblings=(JOURNAL_NAME,)), lambda effect: None)
        actor_host.add(JOURNAL_NAME, JournalOutbox(node.name, "parent"), lambda effect: None)
        actor_host.add(PARENT, _Parent(), self._kill_child)
        self._parent = actor_host
        async with trio.open_nursery() as nursery:
            nursery.start_soon(actor_host.keep_timers)
            nursery.start_soon(post.pump, actor_host)
            actor_host.post(MEMBER, Greet())

    def _kill_child(self, order: Any) -> None:
        node = self.nodes.get(order.node_id)
        if node is not None and node.alive and node.pid == order.pid:
            self.say(f"the parent kills {node.name}: {order.why}")
            self.kill(node.name, back_after_s=1.0)

    async def _notice(self, node: Node) -> None:
        await trio.sleep(EXIT_NOTICE_S)
        self._write_down("child_died", node, "signal 9")
        if self._parent is not None and node.name != "coordinator":
            exited = ChildExited(node_id=NodeId(node.name), pid=node.pid, how="signal 9")
            self._parent.post(PARENT, exited)

    def _write_down(self, kind: JournalKind, node: Node, reason: str = "") -> None:
        """In the parent's journal, as its supervisor does."""
        role = ROLES.get(node.name[0])
        if self._parent is not None and role is not None:
            entry = JournalEntry(kind=kind, actor=PARENT, node=node.name, role=role, reason=reason, pid=node.pid)
            self._parent.post(JOURNAL_NAME, entry)

    def _poisoned(self, node: Node) -> None:
        if node.alive:
            self.say(f"{node.name} computes poison")
            self.deaths += 1
            self.kill(node.name, self.on_poison_back_s)

    async def _return(self, name: str, after_s: float) -> None:
        await trio.sleep(after_s)
        if not self.nodes[name].alive:
            self.start(name)

    async def _later(self, after_s: float, do: Callable[[], None]) -> None:
        await trio.sleep(after_s)
        do()

    def _resume(self, node: Node) -> None:
        if node.paused and node.alive:
            self.say(f"{node.name} goes on")
            node.paused = False
            node.change()
            self.network.resume(node.name)

    def _count_dead(self, node: Node) -> None:
        self.stale_of_the_dead += _stale(node)
        self.contained_in_the_dead += _contained(node)

    # ------------------------------------------------------------ readers

    async def _read(self, chat: Chat, leave_after: int | None) -> None:
        request = GenerateRequest(
            model_id=MODEL_ID,
            prompt_ids=chat.prompt,
            max_tokens=chat.max_tokens,
            params=chat.params,
            stop_ids=chat.stop_ids,
            request=1 + chat.number // 3,  # some share a request, and some requests a key
            owner=("", "a", "b")[chat.number % 7 % 3],
        )
        self.say(f"chat {chat.number} asks for {chat.max_tokens} after {len(chat.prompt)}")
        with chat.scope:
            await self._ask(chat, request, leave_after)
            while chat.refusal is not None and chat.refusal.retry_after_s is not None and not chat.tokens:
                chat.turned_away += 1
                await trio.sleep(chat.refusal.retry_after_s)
                await self._ask(chat, request, leave_after)
        chat.left = chat.scope.cancelled_caught
        chat.ends += 1
        self.say(f"chat {chat.number} ends: {chat.finish or chat.refusal or 'left'} after {len(chat.tokens)} tokens")
        chat.tell()

    async def _ask(self, chat: Chat, request: GenerateRequest, leave_after: int | None) -> None:
        """Once. A refusal that says when to come back, before the first token, is no end."""
        chat.refusal = None
        while not self.nodes[chat.frontend].alive or self.nodes[chat.frontend].family is None:
            await trio.sleep(0.1)  # connection refused
        try:
            async with self._pieces(chat, request) as pieces:
                async for token_ids, finish in pieces:
                    assert chat.finish is None, "a piece after the last one"
                    chat.tokens += token_ids
                    chat.finish = finish
                    chat.tell()
                    if leave_after is not None and len(chat.tokens) >= leave_after:
                        chat.leave()
        except (RefusalError, ExceptionGroup) as why:
            chat.refusal = _refusal_in(why)

    @asynccontextmanager
    async def _pieces(self, chat: Chat, request: GenerateRequest) -> AsyncIterator[Any]:
        """(token ids, finish) as they come: over HTTP, or straight from the frontend."""
        node = self.nodes[chat.frontend]
        if not self.shape.http:
            async with node.family.generate(request) as pieces:
                yield ((piece.token_ids, piece.finish) async for piece in pieces)
            return
        body = {
            "model": MODEL_ID, "prompt": list(chat.prompt), "max_tokens": chat.max_tokens, "stream": True,
            "temperature": chat.params.temperature, "seed": chat.params.seed, "stop_token_ids": list(chat.stop_ids),
            "return_token_ids": True,
        }  # fmt: skip
        async with exchange(node.app, "POST", "/v1/completions", body) as answer:
            yield read_stream(answer)


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


def _refusal_in(why: Exception) -> Refusal:
    """Nurseries wrap what is raised in them."""
    while isinstance(why, ExceptionGroup) and len(why.exceptions) == 1:
        why = why.exceptions[0]
    if not isinstance(why, RefusalError):
        raise why
    return why.refusal


async def _at_once(do: Callable[..., Any], *args: Any) -> Any:
    return do(*args)


def _cause(why: BaseException, kind: type[BaseException]) -> bool:
    if isinstance(why, BaseExceptionGroup):
        return why.split(kind)[1] is None
    return isinstance(why, kind)


def _stale(node: Node) -> int:
    if isinstance(node.family, Worker):
        return node.family.line.stale_dropped
    if isinstance(node.family, Coordinator):
        return node.family.broker.stale_dropped
    return 0


def _contained(node: Node) -> int:
    return 0 if node.family is None else node.family._gateway.contained


@asynccontextmanager
async def open_world(shape: Shape, seed: int = 0) -> AsyncIterator[World]:
    """A cluster that has just been switched on; everything in it ends with the block."""
    rng = random.Random(seed)
    network = _Traced(random.Random(rng.getrandbits(64)))
    async with trio.open_nursery() as nursery:
        world = World(
            shape, seed, nursery, rng, network, SavedState(desired=(DesiredModel(shape.model_path, MODEL_ID),))
        )
        nursery.start_soon(network.run)
        world.start("coordinator")
        if shape.parent:
            world.start("parent")
        for number in range(1, shape.frontends + 1):
            world.start(f"f{number}")
        for number in range(1, shape.workers + 1):
            world.start(f"w{number}")
        await trio.sleep(0.01)
        yield world
        for node in world.nodes.values():
            node.alive = False
        nursery.cancel_scope.cancel()
