"""One life of a child process: from its first beat to the moment when everything in it has come to rest.

SIGTERM and the loss of the parent both set `stopping`; what has to happen before the end is the body's affair. Knows no
role, and no actor but the member that is let in.
"""

import signal
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import attrs
import trio

from hydra.actors.families.lifeline import Lifeline

if TYPE_CHECKING:
    from hydra.actors.core.membership import Member

ADMISSION_POLL_S = 0.1  # for the moment that a process is let in
ORPHAN_DRAIN_S = 30.0  # of those who know no drain time of their own
LINGER_AFTER_S = 0.2  # between the last word and the closing of sockets


@attrs.define(eq=False)
class ChildLife:
    """`drain_timeout`: how long an orphan may still live."""

    lifeline_fds: tuple[int, int]
    drain_timeout: float
    stopping: trio.Event = attrs.field(factory=trio.Event, init=False)
    lifeline: Lifeline = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.lifeline = Lifeline(*self.lifeline_fds, self.drain_timeout, self.stopping.set)

    async def run(self, body: Callable[[], Awaitable[None]]) -> None:
        """Until `body` returns, which `stopping` must bring about."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.lifeline.hold)
            nursery.start_soon(self._hear_sigterm)
            await body()
            nursery.cancel_scope.cancel()

    async def say_up(self, member: "Member") -> None:
        """As soon as the coordinator has let it in."""
        while member.generation is None:
            await trio.sleep(ADMISSION_POLL_S)
        self.lifeline.say_up()

    async def _hear_sigterm(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                self.stopping.set()
