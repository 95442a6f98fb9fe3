"""A process that lends one directory on the store lane, to be killed: `python -m tests.wire.store_child ADDR DIR`.

Says `serving ADDR` once it is bound. HYDRA_TEST_DISK_S slows each of its reads.
"""

import os
import sys
import time
from functools import partial
from pathlib import Path

import trio

from hydra.actors.families.store_server import StoreServer
from hydra.protocol.wires.zmq_wire import ZmqWires
from hydra.store.lending.file_lender import FileLender, WholeFiles

TOKEN, PRINT = "token", "print"


class SlowKeeper(FileLender):
    def read(self, *asked):
        time.sleep(float(os.environ.get("HYDRA_TEST_DISK_S", "0")))
        return super().read(*asked)


async def main(addr: str, files: WholeFiles) -> None:
    keeper = SlowKeeper()
    keeper.lend(PRINT, files)
    run_blocking = partial(trio.to_thread.run_sync, abandon_on_cancel=True)
    server = StoreServer(ZmqWires().store_hub(addr), keeper, run_blocking, TOKEN)
    print(f"serving {server.hub.addr}", flush=True)
    await server.run()


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    trio.run(main, sys.argv[1], WholeFiles.of(folder, [path.name for path in folder.iterdir()]))
