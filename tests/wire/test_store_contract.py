"""The store lane in the wire contract: what `wire` promises of hubs and lines holds in memory and on ZeroMQ."""

import contextlib
import random

import pytest
import trio

from hydra.protocol.endpoint import Endpoint
from hydra.protocol.store_lane import CHUNK_BYTES_MAX
from hydra.protocol.wires.wire import AddressTaken, LineBroken, PeerGone, WireClosed, WireFull
from hydra.protocol.wires.zmq_wire import ZmqWires
from hydra.simulation.memory_wire import MemoryNetwork, MemoryWires

ANY = "tcp://127.0.0.1:0"
NOBODY = "tcp://127.0.0.1:1"
WAIT_S = 20.0


class ThreadLine:
    """A line made for a thread, awaited: each wait is a thread of its own."""

    def __init__(self, line):
        self.line = line
        self.send, self.close = line.send, line.close

    async def receive(self):
        frames = await trio.to_thread.run_sync(self.line.receive, WAIT_S)
        assert frames is not None
        return frames


@pytest.fixture(params=["memory", "zmq"])
async def lane(request):
    """(hub(bound), line(addr, bound)) of one wire."""
    if request.param == "zmq":
        wires = ZmqWires()
        with trio.fail_after(60):
            yield (
                lambda addr=ANY, bound=16: wires.store_hub(addr, bound),
                lambda addr, bound=16: ThreadLine(wires.store_line(Endpoint(addr), bound)),
            )
        wires.close()
        return
    network = MemoryNetwork(random.Random(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.run)
        with trio.fail_after(60):
            yield (
                lambda addr=ANY, bound=16: MemoryWires(network, "c").store_hub(addr, bound),
                lambda addr, bound=16: MemoryWires(network, "w").waiting_store_line(Endpoint(addr), bound),
            )
        nursery.cancel_scope.cancel()


@pytest.fixture
def open_hub(lane):
    made = []

    def open_one(*args, **kwargs):
        made.append(lane[0](*args, **kwargs))
        return made[-1]

    yield open_one
    for hub in made:
        hub.close()


@pytest.fixture
def open_line(lane):
    made = []

    def open_one(*args, **kwargs):
        made.append(lane[1](*args, **kwargs))
        return made[-1]

    yield open_one
    for line in made:
        line.close()


def plain(frames):
    return [bytes(frame) for frame in frames]


async def heard(hub, n):
    got = []
    while len(got) < n:
        got += await hub.receive()
    return got


async def test_questions_and_answers_keep_their_frames_and_their_order(open_hub, open_line):
    hub = open_hub()
    line = open_line(hub.addr)
    for i in range(5):
        line.send([b"%d" % i])
    asked = await heard(hub, 5)
    assert [plain(item.frames) for item in asked] == [[b"%d" % i] for i in range(5)]
    chunk = bytes(range(256)) * (CHUNK_BYTES_MAX // 256)
    for i, item in enumerate(asked):
        hub.send_nowait(item.peer, [b"head %d" % i, chunk])
    assert [plain(await line.receive()) for _ in asked] == [[b"head %d" % i, chunk] for i in range(5)]


async def test_two_lines_are_two_peers(open_hub, open_line):
    hub = open_hub()
    lines = [open_line(hub.addr) for _ in range(2)]
    for i, line in enumerate(lines):
        line.send([b"%d" % i])
    for item in await heard(hub, 2):
        hub.send_nowait(item.peer, [b"to " + bytes(item.frames[0])])
    assert [plain(await line.receive()) for line in lines] == [[b"to 0"], [b"to 1"]]


async def test_where_nobody_listens_a_line_is_broken(open_line):
    line = open_line(NOBODY)
    line.send([b"anybody?"])
    with pytest.raises(LineBroken):
        await line.receive()


async def test_a_line_breaks_with_its_hub_and_never_speaks_to_the_next(open_hub, open_line):
    hub = open_hub()
    addr = hub.addr
    line = open_line(addr)
    line.send([b"one"])
    (item,) = await heard(hub, 1)
    hub.send_nowait(item.peer, [b"its answer"])
    assert plain(await line.receive()) == [b"its answer"]
    line.send([b"two"])
    await heard(hub, 1)
    hub.close()
    with pytest.raises(LineBroken):
        await line.receive()
    second = None
    while second is None:  # the address is free again a moment after the close
        try:
            second = open_hub(addr)
        except AddressTaken:
            await trio.lowlevel.checkpoint()
    with pytest.raises((LineBroken, WireFull)):
        for _ in range(100):
            line.send([b"three"])
    again = open_line(addr)
    for number in range(300):  # time enough to dial anew, for whoever would
        again.send([b"%d" % number])
        (item,) = await heard(second, 1)
        assert plain(item.frames) == [b"%d" % number]
        second.send_nowait(item.peer, [b"answer"])
        assert plain(await again.receive()) == [b"answer"]


async def test_an_asker_that_left_is_gone(open_hub, open_line):
    hub = open_hub()
    line = open_line(hub.addr)
    line.send([b"one"])
    (item,) = await heard(hub, 1)
    line.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(heard, hub, 1)  # whoever does not listen does not hear of partings either
        with pytest.raises(PeerGone):
            while True:  # the world needs a moment to notice
                with contextlib.suppress(WireFull):
                    hub.send_nowait(item.peer, [b"answer"])
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def test_an_asker_that_takes_nothing_fills_its_own_queue_only(open_hub, open_line):
    hub = open_hub(bound=4)
    lazy, busy = open_line(hub.addr, bound=4), open_line(hub.addr)
    lazy.send([b"lazy"])
    busy.send([b"busy"])
    peers = {bytes(item.frames[0]): item.peer for item in await heard(hub, 2)}
    chunk = bytes(CHUNK_BYTES_MAX)
    with pytest.raises(WireFull):
        for _ in range(100):
            hub.send_nowait(peers[b"lazy"], [b"head", chunk])
    hub.send_nowait(peers[b"busy"], [b"head", chunk])
    assert plain(await busy.receive()) == [b"head", chunk]


async def test_an_asker_cannot_ask_beyond_the_bound(open_hub, open_line):
    line = open_line(open_hub(bound=4).addr, bound=4)
    with pytest.raises(WireFull):
        for _ in range(100_000):
            line.send([bytes(8 << 10)])


async def test_an_address_is_taken_once_and_a_closed_hub_is_silent(open_hub):
    hub = open_hub()
    with pytest.raises(AddressTaken):
        open_hub(hub.addr)
    hub.close()
    with pytest.raises(WireClosed):
        hub.send_nowait("anybody", [b"x"])
    with pytest.raises(WireClosed):
        await hub.receive()
