"""The thread ends of the data lane: frames go back and forth between two threads, and a wake ends a wait."""

import threading
import time

import pytest

from hydra.protocol.blob import BLOB_BYTES_MAX
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.wires.wire import AddressTaken
from hydra.protocol.wires.zmq_wire import ZmqWires

WAIT_S = 20.0


@pytest.fixture
def wires():
    made = ZmqWires()
    yield made
    made.close()


def send(link, frames):
    """Polls until the link is connected and has room."""
    while not link.try_send(frames):
        pass


@pytest.mark.parametrize("size", [16 << 10, 1 << 20])
def test_two_threads_play_ping_pong(wires, size):
    left, right = (wires.blocking_source("tcp://127.0.0.1:0", 4) for _ in range(2))
    hidden = bytes(size)

    heard_all = threading.Event()

    def echo():
        link = wires.blocking_link(Endpoint(left.addr), 4)
        for _ in range(200):
            send(link, right.receive(WAIT_S))
        heard_all.wait(WAIT_S)  # closing does not linger: the last answer would be lost
        link.close()

    thread = threading.Thread(target=echo)
    thread.start()
    link = wires.blocking_link(Endpoint(right.addr), 4)
    for i in range(200):
        send(link, [b"%d" % i, b"", hidden])
        number, nothing, back = left.receive(WAIT_S)
        assert (bytes(number), bytes(nothing)) == (b"%d" % i, b"") and bytes(back) == hidden
    heard_all.set()
    link.close()
    thread.join()
    left.close()
    right.close()


def test_a_wake_ends_the_wait(wires):
    source = wires.blocking_source("tcp://127.0.0.1:0", 4)
    waker = threading.Thread(target=source.wake)
    waker.start()
    assert source.receive(WAIT_S) is None
    waker.join()
    for _ in range(100):
        source.wake()  # more than anybody reads: never waits, never raises
    source.close()
    source.wake()


def test_time_runs_out(wires):
    source = wires.blocking_source("tcp://127.0.0.1:0", 4)
    assert source.receive(0.0) is None and source.receive(0.001) is None
    source.close()


def test_nobody_there_takes_nothing_and_a_full_queue_neither(wires):
    nobody = wires.blocking_link(Endpoint("tcp://127.0.0.1:1"), 4)
    assert not nobody.try_send([b"x"])
    nobody.close()
    source = wires.blocking_source("tcp://127.0.0.1:0", 2)
    link = wires.blocking_link(Endpoint(source.addr), 2)
    send(link, [b"first"])
    big = bytes(4 << 20)
    assert not all(link.try_send([big]) for _ in range(100))
    assert source.receive(WAIT_S) == (b"first",)
    link.close()
    source.close()


def test_an_address_is_taken_once(wires):
    source = wires.blocking_source("tcp://127.0.0.1:0", 2)
    with pytest.raises(AddressTaken):
        wires.blocking_source(source.addr, 2)
    assert BLOB_BYTES_MAX > 1 << 20
    source.close()


def test_a_queue_that_was_emptied_takes_more_at_once(wires):
    """Quick ping-pong with a small bound: a sender that believes old news would find its queue full."""
    there, back = wires.blocking_source("tcp://127.0.0.1:*", 4), wires.blocking_source("tcp://127.0.0.1:*", 4)
    to, fro = wires.blocking_link(Endpoint(there.addr), 4), wires.blocking_link(Endpoint(back.addr), 4)
    try:
        for link in (to, fro):
            deadline_s = time.monotonic() + 5
            while not link.try_send([b"hello"]):
                assert time.monotonic() < deadline_s
        assert there.receive(5) and back.receive(5)
        for _ in range(300):
            assert to.try_send([b"ping"]) and there.receive(5)
            assert fro.try_send([b"pong"]) and back.receive(5)
    finally:
        for end in (to, fro, there, back):
            end.close()
