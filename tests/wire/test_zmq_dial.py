"""What a dialling over ZeroMQ says of those that do not answer, and from where the hub believes a peer to come."""

import socket

import pytest
import trio

from hydra.processes.held_port import HeldPort
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.wires.zmq_sockets import is_of_this_machine
from hydra.protocol.wires.zmq_wire import ZmqWires


@pytest.fixture
async def wires():
    made = ZmqWires("tcp://127.0.0.1:5555")
    with trio.fail_after(30):
        yield made
    made.close()


async def test_what_is_wrong_is_said_in_words(wires):
    held = HeldPort.take("127.0.0.1")  # bound, and nobody listens
    assert await wires.dial(Endpoint(f"tcp://127.0.0.1:{held.port}"), "steps", 0.05) == "connection refused"
    with socket.socket() as dumb:
        dumb.bind(("127.0.0.1", 0))
        dumb.listen()
        reason = await wires.dial(Endpoint(f"tcp://127.0.0.1:{dumb.getsockname()[1]}"), "steps", 0.05)
        assert "no such process" in reason
    assert await wires.dial(Endpoint("tcp://no-such-host.invalid:1"), "steps", 0.05)
    assert await wires.dial(Endpoint("nonsense"), "steps", 0.05)


async def test_an_end_of_another_lane_is_no_answer(wires):
    source, store = wires.step_source("tcp://127.0.0.1:0", 8), wires.store_hub("tcp://127.0.0.1:0")
    assert await wires.dial(Endpoint(source.addr), "store", 0.1)
    assert await wires.dial(Endpoint(store.addr), "steps", 0.1)
    source.close()
    store.close()


async def test_whoever_is_bound_everywhere_is_dialled_where_the_coordinator_is(wires):
    source = wires.step_source("tcp://*:0", 8)
    assert source.addr.startswith("tcp://0.0.0.0:")
    assert await wires.dial(Endpoint(source.addr), "steps", 5.0) == ""
    source.close()


async def test_the_hub_knows_from_where_a_peer_is_connected(wires):
    hub = wires.hub("tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
    spoke = wires.spoke("w-1", hub.command_addr, hub.broadcast_addr)
    spoke.send_nowait([b"hello", b"more"])
    (delivery,) = await hub.receive()
    assert (delivery.peer, [bytes(frame) for frame in delivery.frames]) == ("w-1", [b"hello", b"more"])
    assert hub._hosts == {"w-1": "127.0.0.1"} and hub.host_of("w-1") == "" == hub.host_of("nobody")
    hub._hosts["w-1"] = "203.0.113.9"  # an address for documentation: nobody's
    assert hub.host_of("w-1") == "203.0.113.9"
    spoke.close()
    hub.close()


def test_an_address_of_this_machine_can_be_bound_to():
    assert is_of_this_machine("127.0.0.1") and is_of_this_machine("127.3.4.5")
    assert not is_of_this_machine("203.0.113.9") and not is_of_this_machine("no address")
