"""The stage thread's twin for a simulation: the same StageLine, the same order of checks, and no thread.

It takes one message, asks the fence, accepts, computes for a while of virtual time, asks the fence again, and sends;
then it acknowledges new fences. See hydra/actors/stage/stage_thread.py, line for line.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import attrs
import trio

from hydra.actors.core.ports import Compute
from hydra.actors.stage.stage import ThreadFenced, ThreadTrouble
from hydra.actors.stage.stage_line import Drop, Fence, StageLine
from hydra.actors.stage.stage_thread import SEND_DEADLINE_S, encode_outcome, to_compute
from hydra.protocol import codec_data
from hydra.protocol.batch import Outcome, Run, Step
from hydra.protocol.blob import Buffer
from hydra.protocol.faults import TheyBrokeTheRules
from hydra.protocol.ids import Epoch, RouteId, StepId
from hydra.protocol.messages.membership import StageProgress
from hydra.protocol.wires.wire import StepSource, WireFull, link_bound
from hydra.simulation.memory_wire import MemoryStepLink, MemoryWires


@attrs.define(eq=False)
class SimStage:
    """Computes for one worker. `spend(run)` passes the time that a step takes; `awake` waits while it is stopped."""

    source: StepSource
    wires: MemoryWires
    line: StageLine
    compute: Compute
    report: Callable[[object], None]
    spend: Callable[[Run], Awaitable[None]]
    awake: Callable[[], Awaitable[None]]
    _inbox: deque[tuple[Buffer, ...]] = attrs.field(factory=deque, init=False)
    _news: trio.Event = attrs.field(factory=trio.Event, init=False)
    _links: dict[RouteId, tuple[Epoch, MemoryStepLink]] = attrs.field(factory=dict, init=False)
    _acked: dict[RouteId, Fence] = attrs.field(factory=dict, init=False)  # each one once, though it be like the last
    _troubled: dict[RouteId, Epoch] = attrs.field(factory=dict, init=False)
    _sent: dict[RouteId, tuple[Epoch, StepId]] = attrs.field(factory=dict, init=False)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive)
            while True:
                await self.awake()
                if self._inbox:
                    await self._take(self._inbox.popleft())
                self._ack_fences()
                if not self._inbox:
                    self._news = trio.Event()
                    await self._news.wait()

    async def _receive(self) -> None:
        while True:
            self._inbox.extend(await self.source.receive())
            self.wake()

    def wake(self) -> None:
        self._news.set()

    def progress(self) -> tuple[StageProgress, ...]:
        return tuple(
            StageProgress(
                route=fence.route,
                epoch=fence.epoch,
                accepted=self.line.accepted(fence.route, fence.epoch),
                sent=self._sent_of(fence),
            )
            for fence in self.line.board.all()
            if fence.open
        )

    def _sent_of(self, fence: Fence) -> StepId:
        epoch, step = self._sent.get(fence.route, (fence.epoch, StepId(0)))
        return step if epoch == fence.epoch else StepId(0)

    async def _take(self, frames: tuple[Buffer, ...]) -> None:
        try:
            step = codec_data.decode_step(frames)
        except TheyBrokeTheRules as error:
            raise AssertionError("malformed step on the data lane of a simulation") from error
        await self._compute(step)

    async def _compute(self, step: Step) -> None:
        accepted = self.line.accept(step)
        if isinstance(accepted, Drop):
            if accepted.breaks_the_route:
                self._trouble(step, accepted.reason)
            return
        fence = self.line.board.read(step.route)
        assert fence is not None and fence.open and fence.epoch == step.epoch, "a step of another epoch was accepted"
        ticket: Any = None
        if to_compute(accepted):
            ticket = self.compute.launch(accepted)
            await self.spend(accepted)
        await self._finish(accepted, ticket)

    def _trouble(self, at: Step | Run, reason: str, side: Literal["in", "out"] = "in") -> None:
        if self._troubled.get(at.route) != at.epoch:
            self._troubled[at.route] = at.epoch
            self.report(ThreadTrouble(at.route, at.epoch, f"step {at.step}: {reason}", side))

    async def _finish(self, run: Run, ticket: Any) -> None:
        outcome = Outcome() if ticket is None else self.compute.collect(ticket)
        fence = self.line.may_send(run)
        if fence is not None and await self._send(run, encode_outcome(run, outcome, last=fence.last)):
            self._sent[run.route] = (run.epoch, run.step)

    async def _send(self, run: Run, frames: list[Buffer]) -> bool:
        link = self._link_for(run)
        deadline_s = trio.current_time() + SEND_DEADLINE_S
        pause_s = 0.0
        while link is not None and not _try_send(link, frames):
            if self.line.admits(run.route, run.epoch) is not None:
                return False
            if trio.current_time() > deadline_s:
                self._trouble(run, "the next hop takes nothing", "out")
                return False
            pause_s = min(0.05, pause_s + 0.005)
            await trio.sleep(pause_s)
            await self.awake()
        return link is not None

    def _link_for(self, run: Run) -> MemoryStepLink | None:
        held = self._links.get(run.route)
        if held is not None and held[0] == run.epoch:
            return held[1]
        if held is not None:
            held[1].close()
        fence = self.line.board.read(run.route)
        if fence is None or fence.epoch != run.epoch or not fence.open or fence.next_addr is None:
            return None
        link = self.wires.step_link(fence.next_addr, link_bound(fence.credits))
        self._links[run.route] = (run.epoch, link)
        return link

    def _ack_fences(self) -> None:
        for fence in self.line.board.all():
            if self._acked.get(fence.route) is not fence:
                self._acked[fence.route] = fence
                if not fence.open:
                    self.report(ThreadFenced(fence.route, fence.epoch))


def _try_send(link: MemoryStepLink, frames: list[Buffer]) -> bool:
    """Like a blocking link: False when the queue is full or nobody is connected."""
    if link._pipe is None:
        return False
    try:
        link.send_nowait(frames)
    except WireFull:
        return False
    return True
