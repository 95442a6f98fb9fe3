"""One contract, two transports: whatever `wire` promises holds in memory and over ZeroMQ alike."""

import random

import pytest
import trio
import trio.testing

from hydra.processes.held_port import HeldPort
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import COORDINATOR
from hydra.protocol.wires.wire import AddressTaken, PeerGone, WireClosed, WireFull, Wires
from hydra.protocol.wires.zmq_wire import ZmqWires
from hydra.simulation.memory_wire import MemoryNetwork, MemoryWires

BIG = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture(params=["memory", "zmq"])
async def wires(request):
    """A function from a node's name to its wires."""
    if request.param == "zmq":
        made = ZmqWires()
        with trio.fail_after(30):
            yield lambda node: made
        made.close()
        return
    network = MemoryNetwork(random.Random(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.run)
        with trio.fail_after(30):
            yield lambda node: MemoryWires(network, node)
        nursery.cancel_scope.cancel()


class Star:
    def __init__(self, wires):
        self.wires = wires
        self.hub = wires("c").hub("tcp://127.0.0.1:0", "tcp://127.0.0.1:0")

    def spoke(self, peer, bound=1000):
        return self.wires(peer).spoke(peer, self.hub.command_addr, self.hub.broadcast_addr, bound)


async def said(end, n):
    """The first n messages at an end, as (peer, first frame)."""
    got = []
    while len(got) < n:
        got += [(item.peer, bytes(item.frames[0])) for item in await end.receive()]
    return got


@pytest.fixture
def star(wires):
    made = Star(wires)
    yield made
    made.hub.close()


async def until(raised, act):
    """Acts, yielding to the loop, until the error comes: the world needs a moment to notice."""
    with pytest.raises(raised):
        while True:
            act()
            await trio.lowlevel.checkpoint()


async def test_they_talk_both_ways_with_all_frames(wires, star):
    _: Wires = wires("x")
    spoke = star.spoke("w-1")
    spoke.send_nowait([b"hello", b"", b"there"])
    (delivery,) = await star.hub.receive()
    assert (delivery.peer, [bytes(f) for f in delivery.frames]) == ("w-1", [b"hello", b"", b"there"])
    star.hub.send_nowait("w-1", [b"welcome"])
    assert await said(spoke, 1) == [(COORDINATOR, b"welcome")]
    spoke.close()


async def test_order_holds(star):
    spoke = star.spoke("w-1")
    for i in range(500):
        spoke.send_nowait([b"%d" % i])
    assert await said(star.hub, 500) == [("w-1", b"%d" % i) for i in range(500)]
    spoke.close()


async def test_two_thousand_duplex_round_trips_lose_no_wake_up(star):
    spoke = star.spoke("w-1")
    spoke.send_nowait([b"0"])
    await said(star.hub, 1)

    async def echo():
        while True:
            for delivery in await star.hub.receive():
                star.hub.send_nowait(delivery.peer, delivery.frames)

    async def beacon():
        while True:
            star.hub.broadcast_nowait([b"beacon"])
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        for i in range(2000):
            spoke.send_nowait([b"%d" % i])
            if i % 3:  # two questions under way at once
                spoke.send_nowait([b"%d again" % i])
                assert await said(spoke, 2) == [(COORDINATOR, b"%d" % i), (COORDINATOR, b"%d again" % i)]
            else:
                assert await said(spoke, 1) == [(COORDINATOR, b"%d" % i)]
        nursery.cancel_scope.cancel()
    spoke.close()


async def test_a_stranger_is_gone(star):
    with pytest.raises(PeerGone):
        star.hub.send_nowait("nobody", [b"x"])


async def test_a_closed_spoke_is_gone_and_its_successor_is_another_peer(star):
    spoke = star.spoke("w-1")
    spoke.send_nowait([b"hello"])
    await said(star.hub, 1)
    spoke.send_nowait([b"goodbye"])
    spoke.close()
    assert await said(star.hub, 1) == [("w-1", b"goodbye")]
    again = star.spoke("w-2")
    again.send_nowait([b"hello"])
    assert await said(star.hub, 1) == [("w-2", b"hello")]
    await until(PeerGone, lambda: star.hub.send_nowait("w-1", [b"x"]))
    star.hub.send_nowait("w-2", [b"y"])
    assert await said(again, 1) == [(COORDINATOR, b"y")]
    again.close()


async def test_queues_are_bounded_on_both_sides(wires):
    hub = wires("c").hub("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", bound=4)
    spoke = wires("w").spoke("w-1", hub.command_addr, hub.broadcast_addr, bound=4)
    spoke.send_nowait([b"hello"])
    await said(hub, 1)
    for send in (lambda: hub.send_nowait("w-1", [BIG]), lambda: spoke.send_nowait([BIG])):
        with pytest.raises(WireFull):
            for _ in range(100):
                send()
    spoke.close()
    hub.close()


@pytest.fixture
def two_addresses():
    """Nobody else's, also while nobody listens there."""
    held = [HeldPort.take("127.0.0.1") for _ in range(2)]
    yield tuple(f"tcp://127.0.0.1:{port.port}" for port in held)
    del held


async def test_said_before_the_hub_is_there_arrives(wires, two_addresses):
    spoke = wires("w").spoke("w-1", *two_addresses, bound=8)
    spoke.send_nowait([b"one"])
    hub = wires("c").hub(*two_addresses)
    assert await said(hub, 1) == [("w-1", b"one")]
    hub.send_nowait("w-1", [b"welcome"])
    assert await said(spoke, 1) == [(COORDINATOR, b"welcome")]
    spoke.close()
    hub.close()


async def test_a_hub_that_comes_back_is_found_again(wires, two_addresses):
    first = wires("c").hub(*two_addresses)
    spoke = wires("w").spoke("w-1", *two_addresses, bound=8)
    spoke.send_nowait([b"one"])
    await said(first, 1)
    first.close()
    second = None
    while second is None:  # the address is free again a moment after the close
        try:
            second = wires("c").hub(*two_addresses)
        except AddressTaken:
            await trio.lowlevel.checkpoint()
    heard = []
    while not heard:  # what goes into the old connection while it dies is lost: whoever has no answer says it again
        spoke.send_nowait([b"two"])
        with trio.move_on_after(0.5):
            heard = await said(second, 1)
    assert heard == [("w-1", b"two")]
    second.send_nowait("w-1", [b"welcome"])
    assert await said(spoke, 1) == [(COORDINATOR, b"welcome")]
    spoke.close()
    second.close()


async def test_everybody_hears_the_broadcast(star):
    spokes = [star.spoke(f"w-{i}") for i in range(3)]
    heard = []

    async def listen(spoke):
        heard.append((await said(spoke, 1))[0])

    async with trio.open_nursery() as nursery:
        for spoke in spokes:
            nursery.start_soon(listen, spoke)
        while len(heard) < 3:
            star.hub.broadcast_nowait([b"beacon"])
            await trio.lowlevel.checkpoint()
    assert heard == [(COORDINATOR, b"beacon")] * 3
    for spoke in spokes:
        spoke.close()


async def test_steps_travel_in_order_and_big(wires):
    source = wires("b").step_source("tcp://127.0.0.1:0", 64)
    link = wires("a").step_link(Endpoint(source.addr), 64)
    for i in range(20):
        link.send_nowait([b"%d" % i, BIG])
    got = []
    while len(got) < 20:
        got += await source.receive()
    assert [bytes(frames[0]) for frames in got] == [b"%d" % i for i in range(20)]
    assert all(bytes(frames[1]) == BIG for frames in got)
    link.close()
    source.close()


async def test_a_link_to_nobody_is_full_at_its_bound(wires):
    link = wires("a").step_link(Endpoint("tcp://127.0.0.1:1"), 3)
    for _ in range(3):
        link.send_nowait([b"x"])
    with pytest.raises(WireFull):
        link.send_nowait([b"x"])
    link.close()


async def test_an_address_is_taken_once(wires, star):
    with pytest.raises(AddressTaken):
        wires("d").hub(star.hub.command_addr, "tcp://127.0.0.1:0")


async def test_closing_wakes_the_receiver_and_ends_sending(wires, star):
    spoke = star.spoke("w-1")
    source = wires("b").step_source("tcp://127.0.0.1:0", 4)
    link = wires("a").step_link(Endpoint(source.addr), 4)

    async def hears_the_end(end):
        with pytest.raises(WireClosed):
            while True:
                await end.receive()

    async with trio.open_nursery() as nursery:
        for end in (spoke, star.hub, source):
            nursery.start_soon(hears_the_end, end)
        await trio.testing.wait_all_tasks_blocked()
        for end in (spoke, star.hub, source, link):
            end.close()
            end.close()
    for send in (
        lambda: spoke.send_nowait([b""]),
        lambda: star.hub.send_nowait("w-1", [b""]),
        lambda: link.send_nowait([b""]),
        lambda: star.hub.broadcast_nowait([b""]),
    ):
        with pytest.raises(WireClosed):
            send()


async def test_a_dial_is_answered_by_an_end_of_that_lane_and_leaves_nothing_behind(wires):
    here, there = wires("a"), wires("b")
    source, store = there.step_source("tcp://127.0.0.1:0", 8), there.store_hub("tcp://127.0.0.1:0")
    assert await here.dial(Endpoint(source.addr), "steps", 5.0) == ""
    assert await here.dial(Endpoint(store.addr), "store", 5.0) == ""
    link = here.step_link(Endpoint(source.addr), 8)
    link.send_nowait([b"step"])
    assert [bytes(frames[0]) for frames in await source.receive()] == [b"step"], "and nothing before it"
    link.close()
    source.close()
    there = Endpoint(source.addr)
    while not await here.dial(there, "steps", 0.05):  # until the world has noticed that nobody is there any more
        await trio.lowlevel.checkpoint()
    store.close()
