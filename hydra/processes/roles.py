"""The introductions: each role's machines meet the sockets, files, tensors and words they were written against.

One function per child process. Rooms are imported inside, so that a coordinator never imports torch and a worker
never imports the HTTP room.
"""

import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import attrs
import structlog
import trio

from hydra.actors.core.ports import Compute
from hydra.actors.families.lifeline import FAMILY_ENV, Lifeline
from hydra.complaint import MODEL_SETTINGS, Complaint, exit_code_of
from hydra.log.set_up import flush_log, log_lines_lost, say_at_end
from hydra.processes.child_spec import CoordinatorSpec, FrontendSpec, WorkerSpec
from hydra.processes.turned_away import Doorstep
from hydra.protocol.ids import NodeId, PeerId
from hydra.protocol.model.model_spec import Described
from hydra.protocol.refusal import Refusal
from hydra.protocol.wires.wire import StoreHub

if TYPE_CHECKING:
    from hydra.actors.core.membership import Member
    from hydra.actors.core.ports import Lender
    from hydra.actors.families.coordinator import SavedState
    from hydra.actors.families.store_server import StoreServer
    from hydra.actors.planning.desired_model import Policy
    from hydra.actors.scheduling.broker import Limits

log = structlog.get_logger()

ORPHAN_SILENCE_S = 2.0  # a coordinator that says nothing for so long is gone too
LOOK_EVERY_S = 0.1  # for the moment that a process is let in
STORE_THREADS = 8  # reads of the store lane, the hanging ones among them
LINGER_AFTER_S = 0.2  # between the last word and the closing of sockets


def peer_id(node_id: str) -> PeerId:
    """A name of this process on the command lane: no other life of the same node has it."""
    return PeerId(f"{node_id}~{secrets.token_hex(6)}")


async def _live(
    body: Callable[[], Awaitable[None]],
    lifeline_fds: tuple[int, int],
    drain_timeout_s: float,
    *,
    on_stop: Callable[[], None],
    prepare: Callable[[Lifeline], None] = lambda lifeline: None,
) -> None:
    """Runs `body` until it returns; SIGTERM and a lost parent both call `on_stop`, which must bring that about."""
    lifeline = Lifeline(*lifeline_fds, drain_timeout_s, on_stop)
    prepare(lifeline)

    async def hear_sigterm() -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                on_stop()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lifeline.hold)
        nursery.start_soon(hear_sigterm)
        await body()
        nursery.cancel_scope.cancel()


async def _say_up(lifeline: Lifeline, member: "Member") -> None:
    """As soon as the coordinator has let it in."""
    while member.generation is None:
        await trio.sleep(LOOK_EVERY_S)
    lifeline.say_up()


def _store_server(hub: StoreHub, lender: "Lender") -> "StoreServer":
    """The answering end of the store lane. Its reads have threads of their own, and are abandoned when they hang."""
    from hydra.actors.families.store_server import StoreServer

    run_blocking = partial(trio.to_thread.run_sync, abandon_on_cancel=True, limiter=trio.CapacityLimiter(STORE_THREADS))
    return StoreServer(hub, lender, run_blocking, os.environ.get("HYDRA_CLUSTER_JOIN_TOKEN", ""))


def _memory(spec: CoordinatorSpec) -> "SavedState":
    """What a former life left behind; a model it did not have is wished for anew, and counts as a first start."""
    from hydra.actors.planning.desired_model import DesiredModel
    from hydra.processes.state_dir import read_state

    saved = read_state(Path(spec.state_dir))
    if not spec.model_path or any(desired.model_path == spec.model_path for desired in saved.desired):
        return saved
    desired = DesiredModel(spec.model_path, spec.model_id or None, None if spec.dtype == "auto" else spec.dtype)
    return attrs.evolve(saved, desired=(desired,), nodes=())


def _policy(spec: CoordinatorSpec) -> "Policy":
    from hydra.actors.planning.desired_model import Policy

    return Policy(
        reserve_bytes=spec.reserve_bytes,
        kv_fraction=spec.kv_fraction,
        max_model_len=spec.max_model_len,
        block_size=spec.block_size,
        running_max=spec.running_max,
        recovery_deadline_s=spec.recovery_deadline_s,
        dtype=spec.dtype,
    )


def limits_of(spec: CoordinatorSpec) -> "Limits":
    """What the Broker keeps to."""
    from hydra.actors.scheduling.broker import Limits

    return Limits(
        batch_tokens=spec.batch_tokens,
        running_max=spec.running_max,
        waiting_max=spec.waiting_max,
        prefix_cache=spec.prefix_cache,
        share_prefixes=spec.share_prefixes,
    )


def coordinator_main(spec: CoordinatorSpec, lifeline_fds: tuple[int, int]) -> None:
    """The coordinator child, until its parent ends it. A lost parent is outlived while a frontend drains."""
    from hydra.actors.families.coordinator import Coordinator, CoordinatorParts
    from hydra.actors.families.status import log_lines_lost_sample
    from hydra.processes.kept_state import TERM_WAIT_S, KeptState
    from hydra.processes.state_dir import write_state
    from hydra.protocol.wires.zmq_wire import ZmqWires
    from hydra.store.cache.cache_room import CacheRoom
    from hydra.store.hub.hub import HubClient
    from hydra.store.hub.hub_lending import lend_model
    from hydra.store.hub.hub_library import HubLibrary
    from hydra.store.hub.hub_login import with_login
    from hydra.store.lending.file_lender import FileLender
    from hydra.store.models.description_cache import DescriptionCache
    from hydra.store.models.lasting_library import LastingLibrary, files_are_there
    from hydra.store.models.local_copy import source_fault
    from hydra.store.models.model_ref import HubAccess

    saved = _memory(spec)
    fresh, leases_s = not saved.nodes, 3 * spec.beats_missed_max * spec.heartbeat_s
    access, keeper = with_login(HubAccess.of(os.environ)), FileLender()
    wanted_before = () if fresh else saved.desired
    lasting = frozenset(place for desired in wanted_before for place in (desired.place, desired.model_path))
    descriptions = DescriptionCache(Path(spec.cache_dir) / "described")
    library = LastingLibrary(HubLibrary(HubClient(access, Path(spec.cache_dir))), descriptions, lasting)
    room = CacheRoom(root=Path(spec.cache_dir) / "ranges", max_bytes=spec.max_cache_bytes)

    def describe(path: str) -> Described:
        described = library.describe(path)
        if files_are_there(described):
            lend_model(keeper, described, access, room)
        return described

    kept = KeptState(lambda state: write_state(Path(spec.state_dir), state))
    refused: list[Refusal] = []

    async def main() -> None:
        kept.start()
        wires = ZmqWires("tcp://127.0.0.1:0")
        stopping = trio.Event()
        held: list[Lifeline] = []

        def give_up(refusal: Refusal) -> None:
            """A first start says at once that its model cannot be served; later lives try again and again.
            A new `up` also ends when its settings ask more of the model it remembers than that can do."""
            if fresh or (saved.first_life and refusal.param in MODEL_SETTINGS):
                refused.append(refusal)
                stopping.set()

        parts = CoordinatorParts(
            hub=wires.hub(spec.router_addr, spec.broadcast_addr, spec.high_water_mark),
            lane=wires,
            results=wires.step_source(spec.results_addr, spec.high_water_mark),
            library=library,
            describe=lambda path: trio.to_thread.run_sync(describe, path, abandon_on_cancel=True),
            saved=saved,
            save=kept.save,
            samples=lambda: (*kept.samples(), log_lines_lost_sample("coordinator", log_lines_lost())),
            policy=_policy(spec),
            limits=limits_of(spec),
            on_wish_failed=give_up,
            check_source=lambda described: trio.to_thread.run_sync(source_fault, described, abandon_on_cancel=True),
            dial=wires.dial,
            expected_workers=spec.expected_workers,
            local_nodes=tuple(NodeId(node) for node in spec.local_nodes),
            patience_s=max(spec.patience_s, 0.0 if fresh else leases_s) if saved.first_life else leases_s,
            nodes_s=leases_s,
            heartbeat_s=spec.heartbeat_s,
            beats_missed_max=spec.beats_missed_max,
            join_token=os.environ.get("HYDRA_CLUSTER_JOIN_TOKEN", ""),
            pid=os.getpid(),
            wall_s=int(time.time()),
            store=_store_server(wires.store_hub(spec.store_addr), keeper),
        )
        coordinator = Coordinator(parts)

        def has_frontends() -> bool:
            return any(member.hello.role == "frontend" for member in coordinator.registry.members())

        async def body() -> None:
            async with trio.open_nursery() as nursery:
                await nursery.start(coordinator.run)
                held[0].say_up()
                await stopping.wait()
                while has_frontends() and not refused:
                    await trio.sleep(0.1)  # their streams end first; the lifeline's alarm bounds the wait
                nursery.cancel_scope.cancel()

        try:
            await _live(body, lifeline_fds, 30.0, on_stop=stopping.set, prepare=held.append)
        finally:
            wires.close()
            kept.close(TERM_WAIT_S)

    trio.run(main)
    if refused:
        more = refused[0].code in ("does_not_fit", "no_workers")
        fix = "choose another model, or add memory or workers" if more else "mend what is said above, or choose another"
        code = exit_code_of(refused[0].code, refused[0].param)
        raise Complaint(refused[0].message, "the model cannot be served", fix, code)


def _advertised(addr: str, host: str) -> str:
    """An address as others reach it; without a host of its own, as bound."""
    return f"tcp://{host}:{addr.rpartition(':')[2]}" if host else addr


@attrs.define
class _Door:
    """What a worker hears at the coordinator's door, and how it ends when that is final."""

    final: Complaint | None = None
    _doorstep: Doorstep = attrs.field(factory=Doorstep, init=False)

    def hear(self, refusal: Refusal, leave: Callable[[], None]) -> None:
        final = self._doorstep.hear(refusal, trio.current_time())
        if self._doorstep.is_news:  # it is repeated twice a second
            log.warning("turned away", code=refusal.code, why=refusal.message)
        if final is not None and self.final is None:
            self.final = final
            leave()


def device_of(spec: WorkerSpec) -> Compute:
    """What a worker computes with. Imports torch."""
    from hydra.kernels.step.runner import Runner
    from hydra.protocol.model.model_spec import Dtype

    dtypes: tuple[Dtype, ...] | None = None if spec.dtype == "auto" else (spec.dtype,)  # type: ignore[assignment]
    return Runner(spec.device, threads=spec.threads, dtypes=dtypes, memory_bytes=spec.memory_bytes)


def worker_main(
    spec: WorkerSpec, lifeline_fds: tuple[int, int], make_compute: Callable[[WorkerSpec], Compute] = device_of
) -> None:
    """A worker child. A lost parent is outlived while the coordinator still speaks."""
    from hydra.actors.families.worker import Worker, WorkerParts, run_worker
    from hydra.protocol.wires.zmq_wire import ZmqWires
    from hydra.store.cache.cache_room import CacheRoom
    from hydra.store.cache.range_cache import RangeCache
    from hydra.store.hub.hf_cache import HfCache
    from hydra.store.hub.hub_login import with_login
    from hydra.store.lending.file_lender import FileLender
    from hydra.store.lending.lane_source import lane_opener
    from hydra.store.models.model_ref import HubAccess
    from hydra.store.supply import StoreSupply, hub_opener

    auth = os.environ.get("HYDRA_CLUSTER_JOIN_TOKEN", "")
    room = CacheRoom(root=Path(spec.cache_dir) / "ranges", max_bytes=spec.max_cache_bytes)
    compute = make_compute(spec)
    door = _Door()
    overlapped = spec.device.startswith("cuda")  # the only devices that work on while the next step is received

    async def main() -> None:
        wires = ZmqWires(spec.router_addr)
        source = wires.blocking_source(spec.pipeline_bind, spec.data_bound)
        access = with_login(HubAccess.of(os.environ))
        openers = {**hub_opener(access), **lane_opener(wires.store_line, auth)}
        supply = StoreSupply(RangeCache(room), openers, HfCache(access.hf_cache))
        store = _store_server(wires.store_hub(spec.store_bind), FileLender())
        stopping = trio.Event()
        parts = WorkerParts(
            node_id=NodeId(spec.node_id),
            spoke=wires.spoke(peer_id(spec.node_id), spec.router_addr, spec.broadcast_addr, spec.high_water_mark),
            pipeline_addr=_advertised(source.addr, spec.advertise_host),
            supply=supply,
            store=store,
            store_addr=_advertised(store.hub.addr, spec.advertise_host),
            compute=compute,
            run_blocking=partial(
                trio.to_thread.run_sync, abandon_on_cancel=True
            ),  # the process ends without its threads
            dial=wires.dial,
            host=socket.gethostname(),
            pid=os.getpid(),
            auth=auth,
            log_lines_lost=log_lines_lost,
            turned_away=lambda refusal: door.hear(refusal, stopping.set),
            family=os.environ.get(FAMILY_ENV, ""),
        )
        held: list[Lifeline] = []

        async def body() -> None:
            worker = Worker(parts)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(run_worker, worker, source, wires, overlapped=overlapped))
                nursery.start_soon(_say_up, held[0], worker.member)
                await stopping.wait()
                while held[0].orphaned and worker.silence_s() < ORPHAN_SILENCE_S:
                    await trio.sleep(0.1)  # streams may still be draining; the lifeline's alarm bounds the wait
                worker.leave("stopped")
                await trio.sleep(LINGER_AFTER_S)
                nursery.cancel_scope.cancel()

        await _live(body, lifeline_fds, 30.0, on_stop=stopping.set, prepare=held.append)

    exit_code = 0
    try:
        trio.run(main)
    except BaseException:
        log.exception("the worker ends; its parent starts another")
        exit_code = 1
    if door.final is not None:
        say_at_end(str(door.final))
        exit_code = door.final.exit_code
    flush_log()
    os._exit(exit_code)  # a compute thread that is stuck in a kernel must not keep the process


def frontend_main(spec: FrontendSpec, lifeline_fds: tuple[int, int], *, been_ready: bool = False) -> None:
    """The frontend child: the HTTP server on the inherited socket, and the sessions behind it.

    Until the cluster has `been_ready`, a model whose words cannot be used ends it: nobody could ask for anything.
    """
    from hydra.actors.families.frontend import Frontend, FrontendParts
    from hydra.http.readiness import Readiness
    from hydra.http.serve import HttpSettings, load_words, serve_cluster
    from hydra.protocol.wires.zmq_wire import ZmqWires
    from hydra.text.cache import ChatTemplateFile, TokenizerCache, TokenizerFault

    faults: list[TokenizerFault] = []

    async def main() -> None:
        wires = ZmqWires()
        parts = FrontendParts(
            node_id=NodeId(spec.node_id),
            spoke=wires.spoke(peer_id(spec.node_id), spec.router_addr, spec.broadcast_addr, spec.high_water_mark),
            host=socket.gethostname(),
            pid=os.getpid(),
            auth=os.environ.get("HYDRA_CLUSTER_JOIN_TOKEN", ""),
            family=os.environ.get(FAMILY_ENV, ""),
            max_replays=spec.max_replays,
            log_lines_lost=log_lines_lost,
        )
        frontend = Frontend(parts)
        stopping = trio.Event()
        held: list[Lifeline] = []
        template = ChatTemplateFile(Path(spec.chat_template), spec.model_path) if spec.chat_template else None
        tokenizers = TokenizerCache(load_words, template)
        settings = HttpSettings(
            fd=spec.http_fd,
            drain_timeout_s=spec.drain_timeout_s,
            max_body_bytes=spec.max_body_bytes,
            listening_host=urlsplit(spec.http_url).hostname or "",
            allowed_hosts=spec.allowed_hosts,
            allowed_origins=spec.allowed_origins,
            waits_for_loads=spec.while_loading == "wait",
        )

        async def prove(everything: trio.CancelScope) -> None:
            fault = await Readiness(frontend, tokenizers).wait(None if been_ready else spec.model_path)
            if fault is None:
                held[0].say_ready()
            else:
                faults.append(fault)
                everything.cancel()

        async def body() -> None:
            async with trio.open_nursery() as nursery:
                await nursery.start(frontend.run)
                nursery.start_soon(_say_up, held[0], frontend.member)
                nursery.start_soon(prove, nursery.cancel_scope)
                await serve_cluster(frontend, settings, stopping, tokenizers)
                frontend.leave("stopped")
                await trio.sleep(LINGER_AFTER_S)
                nursery.cancel_scope.cancel()

        try:
            await _live(body, lifeline_fds, spec.drain_timeout_s, on_stop=stopping.set, prepare=held.append)
        finally:
            wires.close()

    trio.run(main)
    if faults:
        refusal = faults[0].refusal
        cause = f"requests to the model at {spec.model_path} could not be answered"
        raise Complaint(refusal.message, cause, faults[0].fix, exit_code_of(refusal.code))
