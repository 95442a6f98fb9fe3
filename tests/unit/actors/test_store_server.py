"""The store lane's answering end: typed answers, few reads at a time, and nobody who can make it wait or forget."""

import errno
import random
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing

from hydra.actors.families.store_server import READ_LEASE_S, READERS, StoreServer
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.refusal import refuse
from hydra.protocol.store_lane import ChunkRefused, ChunkReply, ChunkRequest, decode_answer, encode_ask
from hydra.protocol.wires.wire import STORE_BOUND, LineBroken
from hydra.simulation.memory_wire import MemoryNetwork, MemoryWires

FILE = bytes(range(256)) * 64
ASK = ChunkRequest(number=5, auth="token", fingerprint="print", file="model", offset=100, length=50)


@attrs.frozen
class Lent:
    data: bytearray
    file_bytes: int


class Shelf:
    """One file; everything else is refused as the keeper refuses it."""

    def read(self, fingerprint, file, offset, length):
        if (fingerprint, file) != ("print", "model"):
            raise refuse("model_not_found", "not held here")
        if offset + length > len(FILE):
            raise refuse("invalid_value", "beyond the end", param="offset")
        return Lent(bytearray(FILE[offset : offset + length]), len(FILE))


class Disk:
    """An aside whose reads take as long as a test says."""

    def __init__(self, delay_s=0.001):
        self.delay_s = delay_s
        self.reading = self.most = self.reads = 0

    async def __call__(self, do, *args):
        self.reads += 1
        self.reading += 1
        self.most = max(self.most, self.reading)
        try:
            await trio.sleep(self.delay_s)
        finally:
            self.reading -= 1
        return do(*args)


@attrs.define
class Lane:
    network: MemoryNetwork
    server: StoreServer
    disk: Disk

    def line(self, node="w", **kwargs):
        return MemoryWires(self.network, node).waiting_store_line(Endpoint(self.server.hub.addr), **kwargs)

    async def ask(self, ask):
        line = self.line()
        line.send(encode_ask(ask))
        answer = decode_answer(await line.receive())
        line.close()
        return answer


@asynccontextmanager
async def open_lane(disk=None):
    network = MemoryNetwork(random.Random(2))
    disk = disk or Disk()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.run)
        server = StoreServer(MemoryWires(network, "c").store_hub("mem://store"), Shelf(), disk, "token")
        nursery.start_soon(server.run)
        yield Lane(network, server, disk)
        nursery.cancel_scope.cancel()


async def test_a_chunk_is_told_with_its_number_and_the_size_of_its_file(autojump_clock):
    async with open_lane() as lane:
        assert await lane.ask(ASK) == ChunkReply(number=5, file_bytes=len(FILE), data=FILE[100:150])
        assert lane.server.sent_bytes == 50 and not lane.server.refused
        told = {sample.name: sample.value for sample in lane.server.samples()}
        assert told["hydra_store_bytes_total"] == 50 and sum(told.values()) == 50


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"auth": ""}, "unauthorized"),
        ({"auth": "Token"}, "unauthorized"),
        ({"auth": "token "}, "unauthorized"),
        ({"auth": "token", "fingerprint": "other"}, "model_not_found"),
        ({"auth": "", "fingerprint": "other"}, "unauthorized"),  # a stranger does not learn what is held
        ({"auth": "tökén", "file": "x"}, "unauthorized"),
        ({"file": "../model"}, "model_not_found"),
        ({"offset": len(FILE)}, "invalid_value"),
    ],
)
async def test_refusals_are_typed_and_cost_no_read_without_the_token(changes, code, autojump_clock):
    async with open_lane() as lane:
        answer = await lane.ask(attrs.evolve(ASK, **changes))
        assert isinstance(answer, ChunkRefused)
        assert (answer.number, answer.refusal.code) == (5, code)
        assert lane.server.refused == 1 and lane.server.sent_bytes == 0
        assert lane.disk.reads == (0 if code == "unauthorized" else 1)


async def test_nonsense_is_counted_and_the_next_question_is_answered(autojump_clock):
    async with open_lane() as lane:
        line = lane.line()
        for frames in ([b"\xc1"], [], [b"", b""]):
            line.send(frames)
        line.send(encode_ask(ASK))
        assert decode_answer(await line.receive()).number == 5
        assert lane.server.malformed == 3


async def test_a_disk_that_hangs_is_told_so_and_holds_up_no_more_than_its_readers(autojump_clock):
    async with open_lane(Disk(delay_s=1e6)) as lane:
        began_s = trio.current_time()
        answer = await lane.ask(ASK)
        assert answer.refusal.code == "timeout"
        assert READ_LEASE_S <= trio.current_time() - began_s < READ_LEASE_S + 1
        lane.disk.delay_s = 0.001
        assert isinstance(await lane.ask(ASK), ChunkReply)


async def test_a_disk_that_fails_fails_one_question_and_not_the_server(autojump_clock):
    async with open_lane() as lane:
        read, lane.server.lender.read = lane.server.lender.read, failing
        answer = await lane.ask(ASK)
        assert answer.refusal.code == "bad_model" and "Input/output" in answer.refusal.message
        lane.server.lender.read = read
        assert isinstance(await lane.ask(ASK), ChunkReply)


def failing(*_):
    raise OSError(errno.EIO, "Input/output error")


async def test_few_are_read_at_a_time_and_all_are_answered(autojump_clock):
    async with open_lane() as lane:
        lines = [lane.line(f"w{i}") for i in range(8)]
        for line in lines:
            for number in range(4):
                line.send(encode_ask(attrs.evolve(ASK, number=number)))
        for line in lines:
            assert {decode_answer(await line.receive()).number for _ in range(4)} == {0, 1, 2, 3}
        assert lane.disk.most == READERS


async def test_an_asker_that_vanished_costs_its_answer_and_nothing_else(autojump_clock):
    async with open_lane(Disk(delay_s=1.0)) as lane:
        line = lane.line("gone")
        for number in range(4):
            line.send(encode_ask(attrs.evolve(ASK, number=number)))
        await trio.sleep(0.5)
        lane.network.kill("gone")
        lane.disk.delay_s = 0.001
        assert isinstance(await lane.ask(ASK), ChunkReply)
        await trio.sleep(5)
        assert lane.server.dropped == 4 and lane.server.sent_bytes == 50


async def test_an_asker_that_takes_nothing_loses_answers_and_delays_nobody(autojump_clock):
    async with open_lane() as lane:
        lazy = lane.line("lazy", bound=4 * STORE_BOUND)
        for number in range(3 * STORE_BOUND):
            lazy.send(encode_ask(attrs.evolve(ASK, number=number)))
            await trio.sleep(0.01)
        assert isinstance(await lane.ask(ASK), ChunkReply)
        assert lane.server.dropped == 2 * STORE_BOUND


async def test_a_server_that_ends_breaks_its_lines(autojump_clock):
    async with open_lane(Disk(delay_s=1.0)) as lane:
        line = lane.line()
        line.send(encode_ask(ASK))
        await trio.sleep(0.5)
        lane.network.kill("c")
        with pytest.raises(LineBroken):
            await line.receive()
