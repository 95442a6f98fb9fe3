"""The store lane under faults and virtual time: the real server, the real window, machines that die, links that break.

A loader in the loop stands in for the thread that `LaneSource` runs on: it reads ranges from whoever is there, keeps
what has come, and goes on at the same byte. Every seed must end with the very bytes, and with no more of them fetched
twice than one window of chunks for each break or refusal that it met.
"""

import random

import attrs
import pytest
import trio

from hydra.actors.families.store_server import StoreServer
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.range_window import OPEN_MAX, RangeWindow
from hydra.protocol.refusal import refuse
from hydra.protocol.store_lane import ChunkRefused, decode_answer, encode_ask
from hydra.protocol.wires.wire import LineBroken
from hydra.simulation.determinism import run_sim
from hydra.simulation.memory_wire import Link, MemoryNetwork, MemoryWires, uniform
from tests.sample import n_seeds

CHUNK = 64
SILENCE_S = 5.0
PRINT = "print"


@attrs.frozen
class Lent:
    data: bytes
    file_bytes: int


@attrs.frozen
class Shelf:
    """What one machine holds of the file: some of it."""

    file: bytes
    first: int
    end: int

    def read(self, fingerprint, file, offset, length):
        if not self.first <= offset <= offset + length <= self.end:
            raise refuse("model_not_found", "not in the slice here")
        return Lent(self.file[offset : offset + length], len(self.file))


@attrs.define
class Play:
    """One seed: a coordinator that holds all, peers that hold parts, and loaders that want ranges."""

    rng: random.Random
    network: MemoryNetwork
    nursery: trio.Nursery
    file: bytes
    shelves: dict
    servers: dict = attrs.field(factory=dict)
    scopes: dict = attrs.field(factory=dict)
    fetched: int = 0
    wanted: int = 0
    breaks: int = 0
    refusals: int = 0

    def start(self, name):
        hub = MemoryWires(self.network, name).store_hub(f"mem://{name}")
        self.servers[name] = StoreServer(hub, self.shelves[name], self._disk, "token")
        self.scopes[name] = trio.CancelScope()
        self.nursery.start_soon(self._serve, name)

    async def _serve(self, name):
        with self.scopes[name]:
            await self.servers[name].run()

    async def _disk(self, do, *args):
        await trio.sleep(self.rng.uniform(0.0001, 0.01))
        return do(*args)

    async def trouble(self):
        """Kills, restarts, breaks and silences, until it is calm."""
        for _ in range(self.rng.randint(2, 8)):
            await trio.sleep(self.rng.uniform(0.01, 0.3))
            name = self.rng.choice(sorted(self.shelves))
            kind = self.rng.choice(("kill", "snap", "cut", "pause"))
            if kind == "kill":
                self.network.kill(name)
                self.scopes[name].cancel()
                await trio.sleep(self.rng.uniform(0.0, 1.0))
                self.start(name)
            elif kind == "snap":
                self.network.snap("loader", name)
            elif kind == "cut":
                self.network.cut("loader", name)
                await trio.sleep(self.rng.uniform(0.0, 8.0))
                self.network.snap("loader", name)
                self.network.heal("loader", name)
            else:
                self.network.pause(name)
                await trio.sleep(self.rng.uniform(0.0, 8.0))
                self.network.resume(name)

    async def load(self, start, end):
        """[start, end) into memory, whatever happens."""
        got = bytearray()
        self.wanted += end - start
        while len(got) < end - start:
            for name in self.shelves:
                await self._from(name, start, end, got)
            await trio.sleep(0.05)
        assert bytes(got) == self.file[start:end]

    async def _from(self, name, start, end, got):
        at = start + len(got)
        window = RangeWindow("token", PRINT, "file", at, end - at, chunk_bytes=CHUNK)
        line = MemoryWires(self.network, "loader").waiting_store_line(Endpoint(f"mem://{name}"))
        try:
            while not window.over:
                for ask in window.asks():
                    line.send(encode_ask(ask))
                with trio.fail_after(SILENCE_S):
                    answer = decode_answer(await line.receive())
                if isinstance(answer, ChunkRefused):
                    assert answer.refusal.code == "model_not_found"
                    self.refusals += 1
                    return
                self.fetched += len(answer.data)
                for piece in window.take(answer):
                    got += piece
        except (LineBroken, trio.TooSlowError):
            self.breaks += 1
        finally:
            line.close()


async def play(seed):
    rng = random.Random(seed)
    network = MemoryNetwork(random.Random(rng.getrandbits(32)))
    network.default = Link(
        delay=uniform(0.0001, 0.02), drop=rng.choice((0.0, 0.005)), duplicate=rng.choice((0.0, 0.05))
    )
    file = rng.randbytes(rng.randint(1, 60 * CHUNK))
    shelves = {"coordinator": Shelf(file, 0, len(file))}
    for number in range(rng.randint(0, 2)):
        first, end = sorted(rng.randint(0, len(file)) for _ in range(2))
        shelves[f"w{number}"] = Shelf(file, first, end)
    with trio.fail_after(600):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(network.run)
            made = Play(rng, network, nursery, file, dict(rng.sample(sorted(shelves.items()), len(shelves))))
            for name in made.shelves:
                made.start(name)
            nursery.start_soon(made.trouble)
            async with trio.open_nursery() as loaders:
                for _ in range(rng.randint(1, 4)):
                    loaders.start_soon(made.load, *sorted(rng.randint(0, len(file)) for _ in range(2)))
            nursery.cancel_scope.cancel()
    return made


@pytest.mark.timeout(600)
def test_seeds():
    total = {"breaks": 0, "dropped": 0, "wanted": 0, "extra": 0}
    for seed in range(max(100, n_seeds())):
        made = run_sim(seed, play, seed)
        twice = made.fetched - made.wanted
        repeated = made.fetched if made.network.default.duplicate else 0
        assert twice <= (made.breaks + made.refusals) * OPEN_MAX * CHUNK + repeated
        total["breaks"] += made.breaks
        total["extra"] += twice
        total["wanted"] += made.wanted
        total["dropped"] += sum(server.dropped for server in made.servers.values())
    assert total["breaks"] > 20, "the seeds broke nothing: they prove nothing"
    assert total["dropped"] > 0 and total["wanted"] > 10_000


def test_one_seed_is_one_history():
    one, other = (run_sim(7, play, 7) for _ in range(2))
    assert (one.fetched, one.breaks, one.network.sent) == (other.fetched, other.breaks, other.network.sent)
