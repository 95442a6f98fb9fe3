"""The simulated world: deterministic, counted, and as unkind as a test wants it."""

import random

import pytest
import trio

from hydra.protocol.endpoint import Endpoint
from hydra.protocol.wires.wire import AddressTaken, PeerGone, WireFull, Wires
from hydra.simulation.memory_wire import MemoryNetwork, MemoryWires, uniform

HUB = ("mem://hub", "mem://news")


@pytest.fixture
async def network():
    made = MemoryNetwork(random.Random(7))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        yield made
        nursery.cancel_scope.cancel()


def balanced(network):
    return network.sent == network.delivered + network.dropped + network.in_flight


async def drain(end, seconds=10.0):
    got = []
    with trio.move_on_after(seconds):
        while True:
            got += await end.receive()
    return [item.frames[0] if hasattr(item, "frames") else item[0] for item in got]


def number(i):
    return [b"%d" % i]


async def test_it_is_wires(network, autojump_clock):
    wires: Wires = MemoryWires(network, "c")
    with pytest.raises(RuntimeError):
        wires.blocking_source("mem://x", 1)


async def test_said_before_the_hub_exists_is_kept_up_to_the_bound(network, autojump_clock):
    spoke = MemoryWires(network, "w").spoke("w-1", *HUB, bound=3)
    for i in range(3):
        spoke.send_nowait(number(i))
    with pytest.raises(WireFull):
        spoke.send_nowait(number(3))
    hub = MemoryWires(network, "c").hub(*HUB)
    assert await drain(hub) == [b"0", b"1", b"2"] and balanced(network)


async def test_a_killed_hub_is_found_again_at_its_address(network, autojump_clock):
    spoke = MemoryWires(network, "w").spoke("w-1", *HUB)
    hub = MemoryWires(network, "c").hub(*HUB)
    spoke.send_nowait(number(0))
    assert await drain(hub) == [b"0"]
    spoke.send_nowait(number(1))
    network.kill("c")
    hub.send_nowait("w-1", number(9))
    hub.close()
    assert network.dropped == 1 and balanced(network)
    spoke.send_nowait(number(2))
    again = MemoryWires(network, "c").hub(*HUB)
    assert await drain(again) == [b"2"]
    again.send_nowait("w-1", number(3))
    assert await drain(spoke) == [b"3"] and balanced(network)


async def test_a_killed_spoke_is_gone_at_once(network, autojump_clock):
    hub = MemoryWires(network, "c").hub(*HUB)
    spoke = MemoryWires(network, "w").spoke("w-1", *HUB)
    spoke.send_nowait(number(0))
    await drain(hub)
    hub.send_nowait("w-1", number(1))
    network.kill("w")
    with pytest.raises(PeerGone):
        hub.send_nowait("w-1", number(2))
    assert await drain(spoke) == [] and balanced(network)


async def test_a_cut_swallows_one_way_and_heals(network, autojump_clock):
    hub = MemoryWires(network, "c").hub(*HUB)
    spoke = MemoryWires(network, "w").spoke("w-1", *HUB)
    spoke.send_nowait(number(0))
    assert await drain(hub) == [b"0"]
    network.cut("w", "c", both=False)
    spoke.send_nowait(number(1))
    hub.send_nowait("w-1", number(2))
    assert await drain(hub) == [] and await drain(spoke) == [b"2"]
    network.heal("w", "c")
    spoke.send_nowait(number(3))
    assert await drain(hub) == [b"3"] and network.dropped == 1 and balanced(network)


async def test_a_pause_holds_both_directions_in_order(network, autojump_clock):
    hub = MemoryWires(network, "c").hub(*HUB)
    spoke = MemoryWires(network, "w").spoke("w-1", *HUB)
    spoke.send_nowait(number(0))
    await drain(hub)
    network.pause("w")
    for i in range(5):
        hub.send_nowait("w-1", number(i))
        spoke.send_nowait(number(i))
    assert await drain(hub) == [] and await drain(spoke) == [] and network.in_flight == 10
    network.resume("w")
    every = [b"%d" % i for i in range(5)]
    assert await drain(hub) == every and await drain(spoke) == every and balanced(network)


async def test_a_full_link_says_so_until_something_is_taken(network, autojump_clock):
    source = MemoryWires(network, "b").step_source("mem://b:0", 4)
    link = MemoryWires(network, "a").step_link(Endpoint(source.addr), 2)
    link.send_nowait(number(0))
    assert await drain(source) == [b"0"]
    link.send_nowait(number(1))
    link.send_nowait(number(2))
    await trio.sleep(1)
    with pytest.raises(WireFull):
        link.send_nowait(number(3))
    assert await drain(source) == [b"1", b"2"]
    link.send_nowait(number(4))
    link.close()
    assert await drain(source) == [b"4"] and balanced(network)


async def test_an_address_is_taken_once(network, autojump_clock):
    MemoryWires(network, "c").hub(*HUB)
    with pytest.raises(AddressTaken):
        MemoryWires(network, "d").hub(*HUB)


async def a_life(seed):
    """A storm of breaks and duplicates; what arrived, in order."""
    network = MemoryNetwork(random.Random(seed))
    network.default.delay = uniform(0.0, 0.2)
    network.default.drop = 0.02
    network.default.duplicate = 0.1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.run)
        hub = MemoryWires(network, "c").hub(*HUB)
        spokes = [MemoryWires(network, f"w{i}").spoke(f"w{i}-1", *HUB) for i in range(4)]
        for i in range(200):
            for spoke in spokes:
                spoke.send_nowait(number(i))
            hub.broadcast_nowait([b"beacon"])
            assert balanced(network)
            await trio.sleep(0.01)
        got = [(d.peer, int(d.frames[0])) for d in await hub.receive()]
        with trio.move_on_after(5):
            while True:
                got += [(d.peer, int(d.frames[0])) for d in await hub.receive()]
        assert balanced(network) and network.dropped > 0
        nursery.cancel_scope.cancel()
    for spoke in spokes:
        heard = [i for peer, i in got if peer == spoke.peer]
        assert heard == sorted(heard) and len(set(heard)) > 30
    return got


async def test_order_holds_in_a_storm_and_a_seed_is_a_history(autojump_clock):
    assert await a_life(3) == await a_life(3) != await a_life(4)
