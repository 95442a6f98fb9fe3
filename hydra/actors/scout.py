"""The Scout of a worker: dials whom the Planner names, and says who did not answer. It remembers nothing.

An answer is another process's own word on the lane in question: that a port takes connections proves little.
"""

from collections.abc import Iterable

import attrs
import trio

from hydra.actors.machine import Effect, Event, Received, Send
from hydra.actors.reach import DIAL_S
from hydra.protocol.ids import PLANNER, AskId
from hydra.protocol.messages import Dial, Dialled, Unanswered
from hydra.protocol.wire import Dialler, Lane


@attrs.frozen
class RunDial:
    """Effect: dial all of them at once; answer ScoutBack."""

    order: Dial


@attrs.frozen
class ScoutBack:
    ask: AskId
    unanswered: tuple[Unanswered, ...]


@attrs.define
class Scout:
    def handle(self, event: Event, now_s: float) -> list[Effect]:
        match event:
            case Received(message=Dial() as order):
                return [RunDial(order)]
            case ScoutBack(ask=ask, unanswered=unanswered):
                return [Send(PLANNER, Dialled(ask=ask, unanswered=unanswered))]
            case _:
                raise AssertionError(f"a scout cannot be told {event!r}")


async def dial_all(
    dial: Dialler, step_addrs: Iterable[str], store_addrs: Iterable[str], timeout_s: float = DIAL_S
) -> tuple[Unanswered, ...]:
    """All at once. Those that did not answer in time, in order."""
    lanes: list[tuple[str, Lane]] = [
        *((addr, "steps") for addr in step_addrs),
        *((addr, "store") for addr in store_addrs),
    ]
    faults: dict[tuple[str, Lane], str] = {}

    async def dial_one(addr: str, lane: Lane) -> None:
        faults[addr, lane] = await dial(addr, lane, timeout_s)

    async with trio.open_nursery() as nursery:
        for addr, lane in lanes:
            nursery.start_soon(dial_one, addr, lane)
    return tuple(Unanswered(addr=key[0], reason=faults[key]) for key in lanes if faults[key])
