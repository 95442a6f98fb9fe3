"""The compute thread with its outlet: on a device that works by itself, steps leave in order, and faults are raised."""

import threading
from collections import deque

import attrs
import pytest

from hydra.actors.stage.stage import ThreadFenced, ThreadTrouble
from hydra.actors.stage.stage_line import Fence, FenceBoard, StageLine
from hydra.actors.stage.stage_thread import LAUNCHED_MAX, StageThread
from hydra.protocol import codec_data
from hydra.protocol.batch import Batch, Outcome, RowOpening, Step, int32
from hydra.protocol.blob import Blob
from hydra.protocol.data_header import DATA_HEADER
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Attempt, Epoch, RouteId, RowId, StepId
from hydra.protocol.sampling import GREEDY

ROUTE, EPOCH = RouteId(1), Epoch(1, 1)
STEPS = 9


@attrs.define
class Source:
    """Frames that wait already; whoever has taken them all is told to stop, or finds another fence on the board."""

    waiting: deque
    at_the_end: object = None

    def receive(self, timeout_s):
        if self.waiting:
            return self.waiting.popleft()
        self.at_the_end()
        return None

    def wake(self):
        """Nobody sleeps here."""


@attrs.define
class Device:
    """Has finished a step only when it is collected; `worst` is how many it had in hand at once."""

    bad_step: int = 0
    starved: tuple = ()  # steps that find no memory
    launched: list = attrs.field(factory=list)
    in_hand: int = 0
    worst: int = 0
    collected: list = attrs.field(factory=list)
    lock: threading.Lock = attrs.field(factory=threading.Lock)

    def launch(self, run):
        self.launched.append(run.step)
        with self.lock:
            self.in_hand += 1
            self.worst = max(self.worst, self.in_hand)
        return run.step

    def collect(self, ticket):
        with self.lock:
            self.in_hand -= 1
        if ticket == self.bad_step:
            raise RuntimeError("the device is gone")
        self.collected.append(ticket)
        if ticket in self.starved:
            return Outcome(out_of_memory=True)
        return Outcome(hidden=Blob("float32", (1, 2), bytes(8)), token=int32([7]))


@attrs.define
class Lane:
    sent: list = attrs.field(factory=list)
    closed: int = 0
    said: list = attrs.field(factory=list)  # the frames themselves

    def blocking_link(self, addr, bound):
        return self

    def try_send(self, frames):
        self.said.append(tuple(frames))
        self.sent.append(DATA_HEADER.unpack_from(frames[0])[8])
        return True

    def close(self):
        self.closed += 1


def frames_of(number, starved=False):
    opened = (RowOpening(row=RowId(1), attempt=Attempt(0), params=GREEDY, prompt_tokens=1),) if number == 1 else ()
    one = int32([1])
    batch = Batch(
        row=one, attempt=int32([0]), position=int32([number - 1]), length=one, sample=one, new_blocks=int32([0]),
        tokens=int32([7]), opened=opened,
    )  # fmt: skip
    step = Step(route=ROUTE, epoch=EPOCH, step=StepId(number), batch=batch, out_of_memory=starved)
    return tuple(codec_data.encode_step(step))


def thread_over(device, lane, *, overlapped, told, last=False, starved=()):
    line = StageLine(FenceBoard())
    line.board.publish(Fence(route=ROUTE, epoch=EPOCH, open=True, next_addr=Endpoint("next"), credits=4, last=last))
    source = Source(deque(frames_of(number, number in starved) for number in range(1, STEPS + 1)))
    thread = StageThread(source=source, lane=lane, line=line, compute=device, report=told.append, overlapped=overlapped)
    source.at_the_end = thread.stop
    return thread


@pytest.mark.parametrize("overlapped", [False, True])
def test_every_step_leaves_once_and_in_order(overlapped):
    device, lane = Device(), Lane()
    thread_over(device, lane, overlapped=overlapped, told=[]).run()
    assert lane.sent == device.collected == list(range(1, STEPS + 1))
    assert device.worst <= (LAUNCHED_MAX + 2 if overlapped else 1) and lane.closed == 1


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_a_step_without_memory_is_passed_on_in_its_place_and_computed_nowhere_behind(overlapped, last):
    """Step 3 finds none at an earlier stage, step 5 none here."""
    device, lane = Device(starved=(5,)), Lane()
    thread_over(device, lane, overlapped=overlapped, told=[], last=last, starved=(3,)).run()
    assert lane.sent == list(range(1, STEPS + 1))
    assert device.launched == device.collected == [number for number in lane.sent if number != 3]
    read = codec_data.decode_result if last else codec_data.decode_step
    passed = [read(frames) for frames in lane.said]
    assert [one.step for one in passed if one.out_of_memory] == [3, 5]
    if last:
        assert [len(one.row) for one in passed] == [0 if one.out_of_memory else 1 for one in passed]
    else:
        assert [one.hidden is None for one in passed] == [one.out_of_memory for one in passed]
        assert all(one.batch.n_rows == 1 for one in passed), "the next stage opens and moves the rows all the same"


def test_a_fence_is_acked_only_when_the_device_has_let_go_of_all_that_was_launched():
    device, lane, told = Device(), Lane(), []
    thread = thread_over(device, lane, overlapped=True, told=told)
    later = Epoch(1, 2)

    def fence_first():
        thread.board.publish(Fence(route=ROUTE, epoch=later, open=False))
        thread.source.at_the_end = thread.stop

    def hear(event):
        told.append((event, device.in_hand))

    thread.source.at_the_end, thread.report = fence_first, hear
    thread.run()
    assert told == [(ThreadFenced(ROUTE, later), 0)]


def test_a_fault_of_the_outlet_ends_the_thread_and_is_raised():
    device, lane = Device(bad_step=4), Lane()
    thread = thread_over(device, lane, overlapped=True, told=[])
    with pytest.raises(RuntimeError, match="the device is gone"):
        thread.run()
    assert lane.sent == [1, 2, 3] and lane.closed == 1


def test_an_epoch_that_cannot_go_on_is_told_once():
    """Every step behind a gap is one more of it: complaints must not pile up while the loop is busy."""
    told = []
    thread = thread_over(Device(), Lane(), overlapped=False, told=told)
    thread.source.waiting = deque(frames_of(number) for number in range(2, STEPS))
    thread.run()
    assert told == [ThreadTrouble(ROUTE, EPOCH, "step 2: gap")]


def test_a_fence_that_was_opened_and_closed_again_unseen_is_told_all_the_same():
    """Whoever closed it waits for the thread's word, and ends this process without it."""
    told, shut = [], Fence(route=ROUTE, epoch=EPOCH, open=False)
    thread = thread_over(Device(), Lane(), overlapped=False, told=told)
    thread.board.publish(shut)
    thread._ack_fences()
    thread.board.publish(attrs.evolve(shut, open=True))
    thread.board.publish(attrs.evolve(shut))
    thread._ack_fences()
    thread._ack_fences()
    assert told == [ThreadFenced(ROUTE, EPOCH)] * 2
