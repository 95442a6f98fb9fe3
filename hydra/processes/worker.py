"""A worker's process: its actors meet the sockets, the model cache and the device they were written against.

Never imports the HTTP room; torch only where the device is made, so that a parent may know what a worker is.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import attrs
import structlog
import trio

from hydra.actors.core.ports import Compute
from hydra.actors.families.worker import Worker, WorkerParts, run_worker
from hydra.complaint import Complaint
from hydra.log.set_up import flush_log, say_at_end
from hydra.processes.child_life import LINGER_AFTER_S, ORPHAN_DRAIN_S, ChildLife
from hydra.processes.child_spec import WorkerSpec
from hydra.processes.own_identity import new_peer_id, own_identity
from hydra.processes.store_end import open_store_server
from hydra.processes.turned_away import Doorstep
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.refusal import Refusal
from hydra.protocol.wires.wire import BlockingSource
from hydra.protocol.wires.zmq_wire import ZmqWires
from hydra.store.cache.cache_room import CacheRoom
from hydra.store.cache.range_cache import RangeCache
from hydra.store.hub.hf_cache import HfCache
from hydra.store.hub.hub_login import with_login
from hydra.store.lending.file_lender import FileLender
from hydra.store.lending.lane_source import lane_opener
from hydra.store.models.model_ref import HubAccess
from hydra.store.supply import StoreSupply, hub_opener

log = structlog.get_logger()

ORPHAN_SILENCE_S = 2.0  # a coordinator that says nothing for so long is gone too
COORDINATOR_POLL_S = 0.1  # for that silence


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
    """What a worker computes with. Imports torch; a compiler that is needed for it works beside."""
    from hydra.kernels.native.library import promise_library
    from hydra.kernels.step.runner import Runner
    from hydra.processes.native_build import begin_native_build
    from hydra.protocol.model.dtype import Dtype

    dtypes: tuple[Dtype, ...] | None = None if spec.model.dtype == "auto" else (spec.model.dtype,)  # type: ignore[assignment]
    if spec.device == "cpu":
        promise_library(begin_native_build(os.environ))
    return Runner(spec.device, threads=spec.threads, dtypes=dtypes, memory_bytes=spec.memory_bytes)


def _advertised(addr: str, host: str) -> Endpoint:
    """As others reach what is bound at `addr`; without a host of its own, as bound."""
    return Endpoint(f"tcp://{host}:{addr.rpartition(':')[2]}" if host else addr)


def _parts(
    spec: WorkerSpec,
    wires: ZmqWires,
    source: BlockingSource,
    compute: Compute,
    turned_away: Callable[[Refusal], None],
) -> WorkerParts:
    zmq, auth = spec.zmq, spec.cluster.join_token
    room = CacheRoom(root=Path(spec.model.cache_dir) / "ranges", max_bytes=spec.model.max_cache_bytes)
    access = with_login(HubAccess.of(os.environ))
    openers = {**hub_opener(access), **lane_opener(wires.store_line, auth)}
    store = open_store_server(wires.store_hub(spec.store_bind), FileLender(), spec.cluster)
    return WorkerParts(
        identity=attrs.evolve(
            own_identity("worker", spec.node_id, auth),
            pipeline_addr=_advertised(source.addr, spec.advertise_host),
            store_addr=_advertised(store.hub.addr, spec.advertise_host),
        ),
        spoke=wires.spoke(new_peer_id(spec.node_id), zmq.router_addr, zmq.broadcast_addr, zmq.high_water_mark),
        supply=StoreSupply(RangeCache(room), openers, HfCache(access.hf_cache)),
        store=store,
        compute=compute,
        run_blocking=partial(trio.to_thread.run_sync, abandon_on_cancel=True),  # the process ends without its threads
        dial=wires.dial,
        turned_away=turned_away,
    )


def worker_main(
    spec: WorkerSpec, lifeline_fds: tuple[int, int], make_compute: Callable[[WorkerSpec], Compute] = device_of
) -> None:
    """A worker child. A lost parent is outlived while the coordinator still speaks."""
    compute = make_compute(spec)
    door = _Door()
    overlapped = spec.device.startswith("cuda")  # the only devices that work on while the next step is received

    async def main() -> None:
        wires = ZmqWires(spec.zmq.router_addr)
        source = wires.blocking_source(spec.pipeline_bind, spec.data_bound)
        life = ChildLife(lifeline_fds, ORPHAN_DRAIN_S)
        parts = _parts(spec, wires, source, compute, lambda refusal: door.hear(refusal, life.stopping.set))

        async def body() -> None:
            worker = Worker(parts)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(run_worker, worker, source, wires, overlapped=overlapped))
                nursery.start_soon(life.say_up, worker.membership.member)
                await life.stopping.wait()
                while life.lifeline.orphaned and worker.membership.silence_s() < ORPHAN_SILENCE_S:
                    await trio.sleep(
                        COORDINATOR_POLL_S
                    )  # streams may be draining; the lifeline's alarm bounds the wait
                worker.membership.leave("stopped")
                await trio.sleep(LINGER_AFTER_S)
                nursery.cancel_scope.cancel()

        await life.run(body)

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
