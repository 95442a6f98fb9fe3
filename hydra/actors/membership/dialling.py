"""Many addresses dialled at once. Knows no reason why, and remembers nothing."""

from collections.abc import Iterable

import trio

from hydra.protocol.endpoint import Endpoint
from hydra.protocol.messages.plans import Unanswered
from hydra.protocol.wires.wire import Dialler, LaneName

DIAL_S = 2.0  # an address that does not answer for so long is not reached


async def dial_all(
    dial: Dialler, step_addrs: Iterable[Endpoint], store_addrs: Iterable[Endpoint], timeout_s: float = DIAL_S
) -> tuple[Unanswered, ...]:
    """All at once. Those that did not answer in time, in order."""
    lanes: list[tuple[Endpoint, LaneName]] = [
        *((addr, "steps") for addr in step_addrs),
        *((addr, "store") for addr in store_addrs),
    ]
    faults: dict[tuple[Endpoint, LaneName], str] = {}

    async def dial_one(addr: Endpoint, lane: LaneName) -> None:
        faults[addr, lane] = await dial(addr, lane, timeout_s)

    async with trio.open_nursery() as nursery:
        for addr, lane in lanes:
            nursery.start_soon(dial_one, addr, lane)
    return tuple(Unanswered(addr=key[0], reason=faults[key]) for key in lanes if faults[key])
