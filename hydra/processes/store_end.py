"""The answering end of the store lane in a process that lends files. Its reads have threads of their own, and are
abandoned when they hang. Knows neither what is lent nor to whom.
"""

from functools import partial
from typing import TYPE_CHECKING

import trio

from hydra.actors.families.store_server import StoreServer
from hydra.protocol.settings.cluster import ClusterSettings
from hydra.protocol.wires.wire import StoreHub

if TYPE_CHECKING:
    from hydra.actors.core.ports import Lender

STORE_THREADS = 8  # reads of the store lane, the hanging ones among them


def open_store_server(hub: StoreHub, lender: "Lender", cluster: ClusterSettings) -> StoreServer:
    run_blocking = partial(trio.to_thread.run_sync, abandon_on_cancel=True, limiter=trio.CapacityLimiter(STORE_THREADS))
    return StoreServer(hub, lender, run_blocking, cluster.join_token)
