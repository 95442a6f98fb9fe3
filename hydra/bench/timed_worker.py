"""A worker process whose stages take a known time and compute nothing: `timed_worker NODE ROUTER BROADCAST STEP_S`."""

import os
import sys

import trio

from hydra.actors.core.identity import Identity
from hydra.actors.families.worker import Worker, WorkerParts, run_worker
from hydra.bench.echo_compute import EchoCompute
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import NodeId, PeerId
from hydra.protocol.wires.zmq_wire import ZmqWires

TIMED_HIDDEN_BYTES = 256


async def timed_worker_main() -> None:
    node_id, router, broadcast, step_s = sys.argv[1:5]
    wires = ZmqWires()
    source = wires.blocking_source("tcp://127.0.0.1:*", 64)
    parts = WorkerParts(
        identity=Identity(
            node_id=NodeId(node_id), role="worker", host="here", pid=os.getpid(), pipeline_addr=Endpoint(source.addr)
        ),
        spoke=wires.spoke(PeerId(f"{node_id}-{os.getpid()}"), router, broadcast),
        compute=EchoCompute(TIMED_HIDDEN_BYTES, float(step_s)),
        run_blocking=trio.to_thread.run_sync,
        dial=wires.dial,
    )
    await run_worker(Worker(parts), source, wires)


if __name__ == "__main__":
    trio.run(timed_worker_main)
