"""The coordinator's process: its actors meet the sockets, the state directory and the models they were written against.

Never imports torch or the HTTP room.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import trio

from hydra.actors.families.coordinator import Coordinator, CoordinatorParts, SavedState
from hydra.actors.families.status import log_lines_lost_sample
from hydra.actors.planning.desired_model import DesiredModel
from hydra.complaint import MODEL_SETTINGS, Complaint, exit_code_of
from hydra.log.set_up import log_lines_lost
from hydra.processes.child_life import ORPHAN_DRAIN_S, ChildLife
from hydra.processes.child_spec import CoordinatorSpec
from hydra.processes.kept_state import TERM_WAIT_S, KeptState
from hydra.processes.state_dir import read_state, write_state
from hydra.processes.store_end import open_store_server
from hydra.protocol.ids import NodeId
from hydra.protocol.model.model_spec import Described
from hydra.protocol.refusal import Refusal
from hydra.protocol.settings.model import ModelSettings
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

PATIENCE_S = 60.0  # with the workers that are awaited at a first start
NOBODY_AWAITED_S = 2.0
STREAMS_POLL_S = 0.1  # for the end of the last frontend


def remembered_state(spec: CoordinatorSpec) -> SavedState:
    """What a former life left behind; a model it did not have is desired anew, and counts as a first start."""
    saved, model = read_state(Path(spec.state_dir)), spec.model
    if not model.path:
        return saved
    if any(desired.model_path == model.path for desired in saved.desired):
        return _as_told(saved, model) if saved.anew else saved
    desired = _told(DesiredModel(model.path, model.id or None), model)
    return attrs.evolve(saved, desired=(desired,), nodes=())


def _as_told(saved: SavedState, model: ModelSettings) -> SavedState:
    """On the terms of this `up`, which may not be those of its former one."""
    desired = [_told(wanted, model) if wanted.model_path == model.path else wanted for wanted in saved.desired]
    return attrs.evolve(saved, desired=tuple(desired))


def _told(desired: DesiredModel, model: ModelSettings) -> DesiredModel:
    dtype = None if model.dtype == "auto" else model.dtype
    return attrs.evolve(desired, dtype=dtype, replicas=model.replicas, quantize=model.quantize)


@attrs.define(eq=False)
class ModelShelf:
    """The models of this process: described by `library`, and lent to workers by `lender` once they are."""

    library: LastingLibrary
    lender: FileLender
    _access: HubAccess
    _room: CacheRoom

    @classmethod
    def of(cls, spec: CoordinatorSpec, saved: SavedState) -> "ModelShelf":
        """Models of a former placement are described from memory where their files cannot be reached."""
        access = with_login(HubAccess.of(os.environ))
        served = saved.desired if saved.nodes else ()
        lasting = frozenset(place for desired in served for place in (desired.place, desired.model_path))
        cache_dir = Path(spec.model.cache_dir)
        library = LastingLibrary(
            HubLibrary(HubClient(access, cache_dir)), DescriptionCache(cache_dir / "described"), lasting
        )
        room = CacheRoom(root=cache_dir / "ranges", max_bytes=spec.model.max_cache_bytes)
        return cls(library, FileLender(), access, room)

    def describe(self, path: str) -> Described:
        described = self.library.describe(path)
        if files_are_there(described):
            lend_model(self.lender, described, self._access, self._room)
        return described


def _parts(
    spec: CoordinatorSpec,
    saved: SavedState,
    wires: ZmqWires,
    shelf: ModelShelf,
    kept: KeptState,
    on_wish_failed: Callable[[Refusal], None],
) -> CoordinatorParts:
    zmq, leases_s = spec.zmq, 3 * spec.cluster.suspect_after_s
    awaits = spec.local_nodes or spec.cluster.min_nodes
    patience_s = max(PATIENCE_S if awaits else NOBODY_AWAITED_S, leases_s if saved.nodes else 0.0)
    return CoordinatorParts(
        hub=wires.hub(zmq.router_addr, zmq.broadcast_addr, zmq.high_water_mark),
        lane=wires,
        results=wires.step_source(zmq.results_addr, zmq.high_water_mark),
        library=shelf.library,
        describe=lambda path: trio.to_thread.run_sync(shelf.describe, path, abandon_on_cancel=True),
        saved=saved,
        save=kept.save,
        samples=lambda: (*kept.samples(), log_lines_lost_sample("coordinator", log_lines_lost())),
        cluster=spec.cluster,
        engine=spec.engine,
        model=spec.model,
        on_wish_failed=on_wish_failed,
        check_source=lambda described: trio.to_thread.run_sync(source_fault, described, abandon_on_cancel=True),
        dial=wires.dial,
        expected_workers=max(len(spec.local_nodes), spec.cluster.min_nodes),
        local_nodes=tuple(NodeId(node) for node in spec.local_nodes),
        patience_s=patience_s if saved.first_life else leases_s,
        nodes_s=leases_s,
        pid=os.getpid(),
        wall_s=time.time(),
        store=open_store_server(wires.store_hub(zmq.store_addr), shelf.lender, spec.cluster),
    )


def coordinator_main(spec: CoordinatorSpec, lifeline_fds: tuple[int, int]) -> None:
    """The coordinator child, until its parent ends it. A lost parent is outlived while a frontend drains."""
    saved = remembered_state(spec)
    shelf = ModelShelf.of(spec, saved)
    kept = KeptState(lambda state: write_state(Path(spec.state_dir), state))
    refused: list[Refusal] = []

    async def main() -> None:
        kept.start()
        wires = ZmqWires("tcp://127.0.0.1:0")
        life = ChildLife(lifeline_fds, ORPHAN_DRAIN_S)

        def give_up(refusal: Refusal) -> None:
            """A first start says at once that its model cannot be served; later lives try again and again.
            A new `up` also ends when its settings ask more of the model it remembers than that can do."""
            if not saved.nodes or (saved.first_life and refusal.param in MODEL_SETTINGS):
                refused.append(refusal)
                life.stopping.set()

        coordinator = Coordinator(_parts(spec, saved, wires, shelf, kept, give_up))

        def has_frontends() -> bool:
            return any(member.hello.role == "frontend" for member in coordinator.registry.members())

        async def body() -> None:
            async with trio.open_nursery() as nursery:
                await nursery.start(coordinator.run)
                life.lifeline.say_up()
                await life.stopping.wait()
                while has_frontends() and not refused:
                    await trio.sleep(STREAMS_POLL_S)  # their streams end first; the lifeline's alarm bounds the wait
                nursery.cancel_scope.cancel()

        try:
            await life.run(body)
        finally:
            wires.close()
            kept.close(TERM_WAIT_S)

    trio.run(main)
    if refused:
        raise _complaint(refused[0])


def _complaint(refusal: Refusal) -> Complaint:
    more = refusal.code in ("does_not_fit", "no_workers")
    fix = "choose another model, or add memory or workers" if more else "mend what is said above, or choose another"
    return Complaint(refusal.message, "the model cannot be served", fix, exit_code_of(refusal.code, refusal.param))
