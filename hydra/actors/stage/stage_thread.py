"""The thread that computes: receive, accept, run, send; nothing else on the hot path, and no event loop in it.

It drives the StageLine. On a device that works by itself (CUDA) an outlet thread waits for finished runs and sends
them, so that the transfer of one micro-batch overlaps the arithmetic of the next; on the CPU one thread does it all.
The thread never blocks in a send: it tries, looks at the fence, and gives up on the epoch after a deadline.
It knows sockets only as BlockingSource and BlockingLink, and arithmetic only as Compute.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Literal

import attrs
import structlog

from hydra.actors.core.ports import Compute, Ticket
from hydra.actors.stage.stage import ThreadFenced, ThreadTrouble
from hydra.actors.stage.stage_line import Drop, Fence, FenceBoard, StageLine
from hydra.protocol import codec_data
from hydra.protocol.batch import Outcome, Run, Step, StepResult
from hydra.protocol.blob import Buffer
from hydra.protocol.faults import TheyBrokeTheRules, WireError
from hydra.protocol.ids import Epoch, RouteId, StepId
from hydra.protocol.messages.membership import StageProgress
from hydra.protocol.wires.wire import BlockingLink, BlockingSource, DataLane, link_bound

IDLE_WAIT_S = 0.2  # how long one receive waits; a wake ends it at once
SEND_DEADLINE_S = 5.0  # a next hop that takes nothing for so long is broken
LAUNCHED_MAX = 2  # runs between intake and outlet: the pinned double buffers

log = structlog.get_logger()


@attrs.define
class _Link:
    epoch: Epoch
    link: BlockingLink


@attrs.define(eq=False)
class StageThread:
    """One device's compute thread(s). `report` is called from the thread and must be safe there."""

    source: BlockingSource
    lane: DataLane
    line: StageLine
    compute: Compute
    report: Callable[[object], None]
    overlapped: bool = False  # True: collect on an outlet thread of its own
    _links: dict[RouteId, _Link] = attrs.field(factory=dict, init=False)
    _seen: Mapping[RouteId, Fence] | None = attrs.field(default=None, init=False)
    _acked: dict[RouteId, Fence] = attrs.field(factory=dict, init=False)  # each one once, though it be like the last
    _troubled: dict[RouteId, Epoch] = attrs.field(factory=dict, init=False)
    _sent: dict[RouteId, tuple[Epoch, StepId]] = attrs.field(factory=dict, init=False)
    _fault: Exception | None = attrs.field(default=None, init=False)  # of the outlet
    _stopping: threading.Event = attrs.field(factory=threading.Event, init=False)
    _launched: queue.Queue[tuple[Run, Ticket | None] | None] = attrs.field(
        factory=lambda: queue.Queue(maxsize=LAUNCHED_MAX), init=False
    )

    @property
    def board(self) -> FenceBoard:
        return self.line.board

    def run(self) -> None:
        """The thread's body. Returns after `stop`; whatever else it raises is a fault of this process."""
        outlet = threading.Thread(target=self._drain_outlet, name="stage-outlet", daemon=True)
        if self.overlapped:
            outlet.start()
        try:
            while not self._stopping.is_set():
                frames = self.source.receive(IDLE_WAIT_S)
                if frames is not None:
                    self._take(frames)
                self._ack_fences()
        finally:
            if self.overlapped:
                self._launched.put(None)
                outlet.join(timeout=SEND_DEADLINE_S)
            for link in self._links.values():
                link.link.close()
        if self._fault is not None:
            raise self._fault

    def stop(self) -> None:
        """From any thread."""
        self._stopping.set()
        self.source.wake()

    def wake(self) -> None:
        """From any thread: there is news on the board."""
        self.source.wake()

    def progress(self) -> tuple[StageProgress, ...]:
        """From any thread: how far each route has come, for the heartbeat."""
        return tuple(
            StageProgress(
                route=fence.route,
                epoch=fence.epoch,
                accepted=self.line.accepted(fence.route, fence.epoch),
                sent=self._sent_of(fence),
            )
            for fence in self.board.all()
            if fence.open
        )

    def _sent_of(self, fence: Fence) -> StepId:
        epoch, step = self._sent.get(fence.route, (fence.epoch, StepId(0)))
        return step if epoch == fence.epoch else StepId(0)

    def _take(self, frames: tuple[Buffer, ...]) -> None:
        try:
            step = codec_data.decode_step(frames)
        except TheyBrokeTheRules as error:
            log.warning("malformed step on the data lane", why=str(error))
            return
        self._compute(step)

    def _compute(self, step: Step) -> None:
        accepted = self.line.accept(step)
        if isinstance(accepted, Drop):
            if accepted.breaks_the_route:
                self._trouble(step, accepted.reason)
            elif accepted.reason == "out of range":
                log.warning("a step that no Broker composes was dropped", route=step.route, step=step.step)
            return
        ticket = self.compute.launch(accepted) if to_compute(accepted) else None
        if self.overlapped:
            self._launched.put((accepted, ticket))
        else:
            self._finish(accepted, ticket)

    def _trouble(self, at: Step | Run, reason: str, side: Literal["in", "out"] = "in") -> None:
        """Said once of an epoch, which is over with it: step after step behind a gap fills no queue with complaints."""
        if self._troubled.get(at.route) != at.epoch:
            self._troubled[at.route] = at.epoch
            self.report(ThreadTrouble(at.route, at.epoch, f"step {at.step}: {reason}", side))

    def _finish(self, run: Run, ticket: Ticket | None) -> None:
        outcome = Outcome() if ticket is None else self.compute.collect(ticket)
        if outcome.out_of_memory:
            tokens = run.batch.n_tokens
            log.warning("no memory for a step", route=run.route, step=run.step, tokens=tokens, why=outcome.reason)
        fence = self.line.may_send(run)
        if fence is not None and self._send(run, encode_outcome(run, outcome, last=fence.last)):
            self._sent[run.route] = (run.epoch, run.step)

    def _send(self, run: Run, frames: list[Buffer]) -> bool:
        link = self._link_for(run)
        if link is not None and link.try_send(frames):
            return True
        deadline_s = time.monotonic() + SEND_DEADLINE_S
        pause_s = 0.0
        while link is not None and not link.try_send(frames):
            if self.line.admits(run.route, run.epoch) is not None or self._stopping.is_set():
                return False
            if time.monotonic() > deadline_s:
                self._trouble(run, "the next hop takes nothing", "out")
                return False
            pause_s = min(0.01, pause_s + 0.0005)
            time.sleep(pause_s)
        return link is not None

    def _link_for(self, run: Run) -> BlockingLink | None:
        """One fresh link per (epoch, next hop): what was queued for a dead peer dies with the old link."""
        held = self._links.get(run.route)
        if held is not None and held.epoch == run.epoch:
            return held.link
        if held is not None:
            held.link.close()
        fence = self.board.read(run.route)
        if fence is None or fence.epoch != run.epoch or not fence.open or fence.next_addr is None:
            return None
        try:
            link = self.lane.blocking_link(fence.next_addr, link_bound(fence.credits))
        except WireError as error:  # the next stage gave an address that is none
            self._trouble(run, str(error), "out")
            return None
        self._links[run.route] = _Link(run.epoch, link)
        return link

    def _ack_fences(self) -> None:
        """Asked after every step, when whoever carries the step away may need this core: mostly one comparison."""
        fences = self.board.snapshot()
        if fences is self._seen:
            return
        for fence in fences.values():
            if self._acked.get(fence.route) is not fence:
                if self.overlapped:
                    self._launched.join()  # what was launched under the old epoch is out of the device first
                self._acked[fence.route] = fence
                if not fence.open:
                    self.report(ThreadFenced(fence.route, fence.epoch))
        self._seen = fences

    def _drain_outlet(self) -> None:
        """The outlet's body, until None comes. A fault ends the steps, and is raised by `run`."""
        while True:
            launched = self._launched.get()
            try:
                if launched is None:
                    return
                if self._fault is None:
                    self._finish(*launched)
            except Exception as fault:  # noqa: BLE001 - carried to `run`, which raises it
                self._fault = fault
                self.stop()
            finally:
                self._launched.task_done()


def to_compute(run: Run) -> bool:
    """A step may only close rows, or have found no memory at an earlier stage."""
    return bool(run.rows) and not run.out_of_memory


def encode_outcome(run: Run, outcome: Outcome, *, last: bool) -> list[Buffer]:
    """What leaves this stage: the batch with its hidden states, or the last stage's word on the sampled rows; of a step
    that this stage or an earlier one had no memory for, that alone.
    """
    starved = run.out_of_memory or outcome.out_of_memory
    if not last:
        hidden = None if starved else outcome.hidden
        return codec_data.encode_step(
            Step(
                route=run.route,
                epoch=run.epoch,
                step=run.step,
                batch=run.batch,
                hidden=hidden,
                out_of_memory=starved,
            )
        )
    if starved:
        return codec_data.encode_result(StepResult(route=run.route, epoch=run.epoch, step=run.step, out_of_memory=True))
    batch = run.batch
    sampled = batch.sample != 0
    result = StepResult(
        route=run.route,
        epoch=run.epoch,
        step=run.step,
        row=batch.row[sampled],
        attempt=batch.attempt[sampled],
        position=(batch.position + batch.length)[sampled],
        token=outcome.token,
        fault=outcome.fault,
        logprobs=outcome.logprobs,
    )
    return codec_data.encode_result(result)
