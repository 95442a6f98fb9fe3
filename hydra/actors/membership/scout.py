"""The Scout of a worker: dials whom the Planner names, and says who did not answer. It remembers nothing.

An answer is another process's own word on the lane in question: that a port takes connections proves little.
"""

import attrs

from hydra.actors.core.machine import Effect, Event, Received, Send
from hydra.actors.core.names import PLANNER
from hydra.protocol.ids import AskId
from hydra.protocol.messages.plans import Dial, Dialled, Unanswered


@attrs.frozen
class RunDial:
    """Effect: dial all of them at once; answer ScoutBack."""

    order: Dial


@attrs.frozen
class ScoutBack:
    """Event: what came of dialling; named are those that did not answer."""

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
