"""A worker that cannot reach the Hub gets a Hub model through a coordinator that can, and only the ranges it loads."""

import threading
from functools import partial
from pathlib import Path

import pytest
import trio

from hydra.actors.families.store_server import StoreServer
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Epoch, RouteId
from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.model.source import Peers, directory_of
from hydra.protocol.wires.zmq_wire import ZmqWires
from hydra.store.cache.cache_room import CacheRoom
from hydra.store.cache.range_cache import RangeCache
from hydra.store.cache.retry_policy import RetryPolicy
from hydra.store.hub.hub import HubClient
from hydra.store.hub.hub_lending import lend_model
from hydra.store.hub.hub_library import HubLibrary
from hydra.store.lending.file_lender import FileLender
from hydra.store.lending.lane_source import lane_opener
from hydra.store.models.model_ref import HubAccess
from hydra.store.supply import StoreSupply, hub_opener
from tests.fake_hub import fake_hub
from tests.unit.store.conftest import copy_of, saved  # noqa: F401

TOKEN = "open-sesame"
NO_HUB = HubAccess(endpoint="http://127.0.0.1:1")


class Coordinator:
    """The lending half of a coordinator, in a thread of its own."""

    def __init__(self, keeper):
        self.keeper, self.addr = keeper, ""
        self._up = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,))
        self._thread.start()
        assert self._up.wait(20)

    async def _main(self):
        wires = ZmqWires()
        run_blocking = partial(trio.to_thread.run_sync, abandon_on_cancel=True)
        self.server = StoreServer(wires.store_hub("tcp://127.0.0.1:0"), self.keeper, run_blocking, TOKEN)
        self.addr, self._token = self.server.hub.addr, trio.lowlevel.current_trio_token()
        with trio.CancelScope() as self._scope:
            self._up.set()
            await self.server.run()
        self.server.hub.close()
        wires.close()

    def stop(self):
        self._token.run_sync_soon(self._scope.cancel)
        self._thread.join()
        self.keeper.close()


def order_of(described, ranges, sources):
    return LoadSlice(
        route=RouteId(1),
        epoch=Epoch(1, 1),
        spec=described.spec,
        dtype="float32",
        first_layer=1,
        end_layer=3,
        tensors=ranges,
        sources=sources,
        files=described.files,
        block_size=16,
        kv_memory_bytes=0,
    )


@pytest.mark.parametrize("listed", ["after the Hub", "alone"])
def test_the_ranges_come_through_the_coordinator_and_nothing_else_leaves_the_hub(listed, copy_of, tmp_path):  # noqa: F811
    directory = copy_of("sharded")
    with fake_hub() as hub:
        hub.add("org/name", directory)
        access = HubAccess(endpoint=hub.url)
        library = HubLibrary(HubClient(access, tmp_path / "near"))
        described = library.describe("org/name")
        ranges = library.slice_ranges(described, 1, 3)
        keeper = FileLender()
        lend_model(keeper, described, access, CacheRoom(root=tmp_path / "near" / "ranges"))
        coordinator = Coordinator(keeper)
        wires = ZmqWires()
        cache = RangeCache(CacheRoom(root=tmp_path / "far"), RetryPolicy(tries=2, first_s=0.01))
        try:
            openers = {**hub_opener(NO_HUB), **lane_opener(wires.store_line, TOKEN)}
            lane = Peers((Endpoint(coordinator.addr),))
            sources = (*described.sources, lane) if listed == "after the Hub" else (lane,)
            order = order_of(described, ranges, sources)
            at_hand = StoreSupply(cache, openers).ensure(order, lambda done, total: None, lambda: False)
            for tensor in ranges:
                whole = (directory / tensor.file).read_bytes()
                with (Path(directory_of(at_hand.sources)) / tensor.file).open("rb") as file:
                    file.seek(tensor.offset)
                    assert file.read(tensor.length) == whole[tensor.offset : tensor.offset + tensor.length]
            wanted = sum(tensor.length for tensor in ranges)
            assert coordinator.server.sent_bytes == wanted
            assert sum(length for _, start, length in hub.sent if start > 0) == wanted  # headers begin at 0
        finally:
            cache.close()
            coordinator.stop()
            wires.close()
