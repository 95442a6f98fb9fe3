"""The stage in the middle, and the plain echo, for P2. Both wait in their own threads; only one is asked at a time."""

import sys
import threading

import zmq

from hydra.actors.stage.stage_thread import StageThread
from hydra.bench.child import say
from hydra.bench.echo_compute import EchoCompute
from hydra.bench.hop import HOP_HIDDEN_BYTES, open_line
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.wires.zmq_wire import ZmqWires


def hop_child_main() -> None:
    raw_back, our_back = sys.argv[1:3]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    pull: zmq.Socket[bytes] = context.socket(zmq.PULL)
    port = pull.bind_to_random_port("tcp://127.0.0.1")

    def echo() -> None:
        push: zmq.Socket[bytes] = context.socket(zmq.PUSH)
        push.connect(raw_back)
        while True:
            push.send(pull.recv())

    wires = ZmqWires()
    source = wires.blocking_source("tcp://127.0.0.1:*", 64)
    stage = StageThread(
        source=source,
        lane=wires,
        line=open_line(Endpoint(our_back)),
        compute=EchoCompute(HOP_HIDDEN_BYTES),
        report=lambda event: None,
    )
    threading.Thread(target=echo, daemon=True).start()
    threading.Thread(target=stage.run, daemon=True).start()
    say([f"tcp://127.0.0.1:{port}", source.addr])
    sys.stdin.read()


if __name__ == "__main__":
    hop_child_main()
