"""P2: a hidden state from one stage thread to another and back, against plain ZeroMQ doing the same.

Our side is the stages' own code: decode, StageLine.accept, (no arithmetic), may_send, encode, send; on both ends. The
other side is a blocking PUSH and PULL pair with the same 16 KiB, copied, and nothing else.
"""

import os
import statistics
import time
from typing import Any

import zmq

from hydra.actors.core.ports import Ticket
from hydra.actors.stage.stage_line import Fence, FenceBoard, StageLine
from hydra.actors.stage.stage_thread import StageThread
from hydra.bench.budget import Measured, median_ratio, spread
from hydra.bench.child import child
from hydra.bench.echo_compute import EchoCompute
from hydra.bench.lone_route import LONE_EPOCH, LONE_ROUTE
from hydra.protocol import codec_data
from hydra.protocol.batch import Batch, RowOpening, Run, Step, int32
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Attempt, RowId, StepId
from hydra.protocol.sampling import GREEDY
from hydra.protocol.wires.zmq_wire import ZmqWires

HOP_HIDDEN_BYTES = 16 * 1024
BLOCK = 200  # round trips of one side before the other has its turn
CREDITS = 4
HOP_WAIT_S = 10.0


def open_line(next_addr: Endpoint) -> StageLine:
    line = StageLine(FenceBoard())
    line.board.publish(Fence(route=LONE_ROUTE, epoch=LONE_EPOCH, open=True, next_addr=next_addr, credits=CREDITS))
    return line


class _LastHop(StageThread):
    """Timed up to its arithmetic."""

    def _finish(self, run: Run, ticket: Ticket | None) -> None:
        """Nobody waits for it."""


class _Ours:
    """This process plays the stage before and the stage after; the child is the one between them."""

    def __init__(self, wires: ZmqWires) -> None:
        self.source = wires.blocking_source("tcp://127.0.0.1:*", 64)
        self._wires = wires
        self._compute = EchoCompute(HOP_HIDDEN_BYTES)
        self._step = 0

    def connect(self, addr: str) -> None:
        def thread(kind: type[StageThread], next_addr: Endpoint) -> StageThread:
            return kind(
                source=self.source, lane=self._wires, line=open_line(next_addr), compute=self._compute, report=_broken
            )

        self._before, self._after = thread(StageThread, Endpoint(addr)), thread(_LastHop, Endpoint(""))

    def prepare(self) -> Run:
        """A step that the stage before has accepted and computed: here the clock begins."""
        self._step += 1
        run = self._before.line.accept(step_of(self._step))
        if not isinstance(run, Run):
            raise RuntimeError(f"not accepted: {run}")
        return run

    def round_trip(self, run: Run) -> None:
        self._before._finish(run, self._compute.launch(run))
        frames = self.source.receive(HOP_WAIT_S)
        if frames is None:
            raise RuntimeError("a step did not come back")
        self._after._take(frames)


def step_of(number: int) -> Step:
    """One row's next token; the first step opens the row."""
    opened: tuple[RowOpening, ...] = ()
    if number == 1:
        opened = (RowOpening(row=RowId(1), attempt=Attempt(0), params=GREEDY, prompt_tokens=1),)
    one = int32([1])
    batch = Batch(
        row=one,
        attempt=int32([0]),
        position=int32([number - 1]),
        length=one,
        sample=one,
        new_blocks=int32([0]),
        tokens=int32([7]),
        opened=opened,
    )
    return Step(route=LONE_ROUTE, epoch=LONE_EPOCH, step=StepId(number), batch=batch)


def _broken(event: Any) -> None:
    raise RuntimeError(f"the route broke: {event}")


class _Raw:
    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        self._pull: zmq.Socket[bytes] = context.socket(zmq.PULL)
        self.addr = f"tcp://127.0.0.1:{self._pull.bind_to_random_port('tcp://127.0.0.1')}"
        self._push: zmq.Socket[bytes] = context.socket(zmq.PUSH)
        self._content = os.urandom(HOP_HIDDEN_BYTES)

    def connect(self, addr: str) -> None:
        self._push.connect(addr)

    def prepare(self) -> bytes:
        return self._content

    def round_trip(self, content: bytes) -> None:
        self._push.send(content)
        self._pull.recv()

    def close(self) -> None:
        self._push.close(0)
        self._pull.close(0)


def measure_hop(*, blocks: int) -> Measured:
    """P2."""
    wires = ZmqWires()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    raw, ours = _Raw(context), _Ours(wires)
    try:
        with child("hydra.bench.hop_child", raw.addr, ours.source.addr) as other:
            raw_addr, our_addr = other.greeting[0]
            raw.connect(raw_addr)
            ours.connect(our_addr)
            pairs: list[tuple[float, float]] = []
            for number in range(blocks + 1):
                pair = (_median_s(ours), _median_s(raw))
                if number:
                    pairs.append(pair)
        detail = {
            "ours_us": round(1e6 * statistics.median(one for one, _ in pairs), 1),
            "raw_us": round(1e6 * statistics.median(other for _, other in pairs), 1),
            "round_trips": blocks * BLOCK,
            "header_bytes": sum(len(frame) for frame in codec_data.encode_step(step_of(2))),
            "rounds": spread(pairs),
        }
        return Measured(ratio=median_ratio(pairs), detail=detail)
    finally:
        raw.close()
        context.destroy(0)
        ours.source.close()
        wires.close()


def _median_s(side: Any) -> float:
    took: list[float] = []
    for _ in range(BLOCK):
        ready = side.prepare()
        began_s = time.perf_counter()
        side.round_trip(ready)
        took.append(time.perf_counter() - began_s)
    return statistics.median(took)
