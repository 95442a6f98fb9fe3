"""A worker's family: its membership, its stage, the loader, and the thread that computes.

The event loop supervises; the hot path never touches it. Loads, activations and drops run one after another on a
loader thread of their own, while other routes keep stepping on the compute thread.
"""

import math
import time
from collections.abc import Callable

import attrs
import structlog
import trio

from hydra.actors.core.host import ActorHost
from hydra.actors.core.identity import Equipment, Identity
from hydra.actors.core.machine import Effect
from hydra.actors.core.names import SCOUT, STAGE
from hydra.actors.core.ports import AlreadyLocal, Compute, RunBlocking, Supply
from hydra.actors.families.member_host import MemberHost, log_turned_away
from hydra.actors.families.store_server import StoreServer
from hydra.actors.membership.dialling import dial_all
from hydra.actors.membership.scout import RunDial, Scout, ScoutBack
from hydra.actors.stage.stage import (
    Activated,
    Publish,
    RunActivate,
    RunDrop,
    RunLoad,
    SliceIn,
    SliceMoved,
    SliceRefused,
    Stage,
    ThreadStuck,
)
from hydra.actors.stage.stage_line import FenceBoard, StageLine
from hydra.actors.stage.stage_thread import StageThread
from hydra.protocol.messages.membership import StageProgress
from hydra.protocol.messages.plans import Dial, LoadPhase, LoadSlice
from hydra.protocol.progress import Progress
from hydra.protocol.refusal import Refusal, RefusalError
from hydra.protocol.wires.wire import BlockingSource, DataLane, Dialler, Spoke

log = structlog.get_logger()

CHORES_MAX = 64  # loads and drops that wait for the loader; a planner orders far fewer
PROGRESS_EVERY_BYTES = 1 << 20  # at least; of a large slice a 200th
PROGRESS_STEPS = 200
PROGRESS_EVERY_S = 5.0  # while anything moves: a coordinator takes a long silence for a load that hangs


class ComputeStuck(Exception):
    """The compute thread does not come back: this process is of no use any more, and its parent starts another."""


@attrs.frozen(kw_only=True)
class WorkerParts:
    """The world, as a worker needs it."""

    identity: Identity  # but for its equipment
    spoke: Spoke
    compute: Compute
    run_blocking: RunBlocking
    dial: Dialler
    supply: Supply = AlreadyLocal()
    store: StoreServer | None = None  # lends to others what was loaded here
    turned_away: Callable[[Refusal], None] = log_turned_away


@attrs.define(eq=False)
class Worker:
    """Builds the host and performs the effects that only a worker knows.

    `wake` is called after each new fence; whoever computes sets it, and posts its words with `hear`.
    """

    parts: WorkerParts
    line: StageLine = attrs.field(factory=lambda: StageLine(FenceBoard()), init=False)
    membership: MemberHost = attrs.field(init=False)
    actor_host: ActorHost = attrs.field(init=False)
    stage: Stage = attrs.field(factory=Stage, init=False)
    wake: Callable[[], None] = attrs.field(default=lambda: None, init=False)
    progress: Callable[[], tuple[StageProgress, ...]] = attrs.field(default=lambda: (), init=False)
    _chores: trio.MemorySendChannel[Effect] = attrs.field(init=False)
    _orders: trio.MemoryReceiveChannel[Effect] = attrs.field(init=False)
    _nursery: trio.Nursery | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        parts = self.parts
        self._chores, self._orders = trio.open_memory_channel(CHORES_MAX)
        equipment = Equipment(
            compute=parts.compute,
            stale_dropped=lambda: self.line.stale_dropped,
            progress=self._progress_now,
        )
        identity = attrs.evolve(parts.identity, equipment=equipment)
        self.membership = MemberHost(parts.spoke, identity, (STAGE,), parts.turned_away)
        self.actor_host = self.membership.actor_host
        self.actor_host.add(STAGE, self.stage, self._perform)
        self.actor_host.add(SCOUT, Scout(), self._perform)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Membership, stage and loader, until cancelled. The computing is somebody else's task."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.membership.start(nursery)
            nursery.start_soon(self._do_chores)
            if self.parts.store is not None:
                nursery.start_soon(self.parts.store.run)
            task_status.started()

    def hear(self, event: object) -> None:
        """A word from the compute thread, brought into the loop."""
        self.actor_host.post(STAGE, event)

    def _progress_now(self) -> tuple[StageProgress, ...]:
        """Of the compute thread, which comes after the greeting."""
        return self.progress()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Publish(fence=fence):
                self.line.board.publish(fence)
                self.wake()
            case RunLoad() | RunActivate() | RunDrop():
                self._chores.send_nowait(effect)
            case ThreadStuck(route=route, why=why):
                raise ComputeStuck(f"route {route}: {why}")
            case RunDial(order=order):
                assert self._nursery is not None
                self._nursery.start_soon(self._dial, order)
            case _:
                raise AssertionError(f"a worker cannot do {effect!r}")

    async def _dial(self, order: Dial) -> None:
        unanswered = await dial_all(self.parts.dial, order.step_addrs, order.store_addrs)
        self.actor_host.post(SCOUT, ScoutBack(order.ask, unanswered))

    async def _do_chores(self) -> None:
        async for chore in self._orders:
            match chore:
                case RunLoad(order=order):
                    await self._load(order)
                case RunActivate() as plan:
                    await self._activate(plan)
                case RunDrop(route=route, weights=True):
                    await self.parts.run_blocking(self.parts.compute.drop, route)
                case RunDrop(route=route):
                    await self.parts.run_blocking(self.parts.compute.free_pool, route)

    async def _load(self, order: LoadSlice) -> None:
        if not self.stage.wants(order.route, order.epoch):
            return

        def let_go() -> bool:
            """Asked from the loader thread: another order or a drop has taken this one's place."""
            return not self.stage.wants(order.route, order.epoch)

        run_blocking, compute, supply = self.parts.run_blocking, self.parts.compute, self.parts.supply
        try:
            wanted = await run_blocking(compute.still_to_read, order)
            if wanted is None:  # all of it is in memory: no file is looked at, nothing new can be lent
                facts = await run_blocking(compute.load, order, self._teller(order, "reading"))
            else:
                at_hand = await run_blocking(supply.ensure, wanted, self._teller(order, "fetching"), let_go)
                facts = await run_blocking(compute.load, at_hand, self._teller(order, "reading"))
                await run_blocking(self._confirm, at_hand)
                await self._lend(at_hand)
        except RefusalError as error:
            self.actor_host.post(STAGE, SliceRefused(order.route, order.epoch, error.refusal))
        else:
            self.actor_host.post(STAGE, SliceIn(order.route, order.epoch, facts))

    def _confirm(self, at_hand: LoadSlice) -> None:
        """Weights that may be of two versions are held no longer. Raises RefusalError."""
        try:
            self.parts.supply.confirm(at_hand)
        except RefusalError:
            self.parts.compute.drop(at_hand.route)
            raise

    async def _activate(self, plan: RunActivate) -> None:
        if not self.stage.wants(plan.route, plan.epoch):
            return
        try:
            await self.parts.run_blocking(self.parts.compute.activate, plan.route, plan.kv_blocks)
        except RefusalError as error:
            self.actor_host.post(STAGE, SliceRefused(plan.route, plan.epoch, error.refusal))
        else:
            self.actor_host.post(STAGE, Activated(plan.route, plan.epoch))

    async def _lend(self, at_hand: LoadSlice) -> None:
        """From now on others may fetch this slice here. That nobody can is no reason not to serve it."""
        if self.parts.store is None:
            return
        try:
            await self.parts.run_blocking(self.parts.store.lender.lend_slice, at_hand)
        except (OSError, RefusalError) as error:
            log.warning("the loaded slice cannot be lent to others", folder=str(at_hand.sources[0]), why=str(error))

    def _teller(self, order: LoadSlice, phase: LoadPhase) -> Progress:
        """A progress that other threads may call; it speaks at the first word, the last, and not too often between."""
        token = trio.lowlevel.current_trio_token()
        sent_bytes, told_s = -1, -math.inf

        def tell(bytes_done: int, bytes_total: int) -> None:
            nonlocal sent_bytes, told_s
            step_bytes = max(PROGRESS_EVERY_BYTES, bytes_total // PROGRESS_STEPS)
            far = sent_bytes < 0 or bytes_done >= min(bytes_total, sent_bytes + step_bytes)
            if bytes_done == sent_bytes or not (far or time.monotonic() - told_s > PROGRESS_EVERY_S):
                return
            sent_bytes, told_s = bytes_done, time.monotonic()
            moved = SliceMoved(order.route, order.epoch, bytes_done, bytes_total, phase)
            token.run_sync_soon(self.actor_host.post, STAGE, moved)

        return tell


async def run_worker(worker: Worker, source: BlockingSource, lane: DataLane, *, overlapped: bool = False) -> None:
    """The whole life of a worker process, until cancelled: the family above, and the compute thread beside it."""
    token = trio.lowlevel.current_trio_token()
    thread = StageThread(
        source=source,
        lane=lane,
        line=worker.line,
        compute=worker.parts.compute,
        report=lambda event: token.run_sync_soon(worker.hear, event),
        overlapped=overlapped,
    )
    worker.wake, worker.progress = thread.wake, thread.progress
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_compute, thread)
        try:
            await worker.run()
        finally:
            thread.stop()


async def _compute(thread: StageThread) -> None:
    """Supervises the compute thread: whatever it raises ends the process. A stuck one is abandoned, not waited for."""
    try:
        await trio.to_thread.run_sync(thread.run, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))
    finally:
        thread.stop()
