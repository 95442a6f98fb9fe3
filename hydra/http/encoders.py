"""What turns words into ids beside the event loop: a few threads, a bounded queue before them, and a deadline.

Promises that the loop goes on whatever is encoded, and that a large text keeps no small one waiting: each has threads
of its own. Who leaves, or waits too long, gives up the place in the queue; work that has begun keeps its thread until
it ends, because nothing can end it. It does not know what the work is.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, TypeVarTuple

import attrs
import trio

from hydra.protocol.refusal import refuse

SMALL_BYTES = 32 << 10  # of a request: what takes milliseconds
SMALL_WAITING_MAX, LARGE_WAITING_MAX = 1024, 16  # requests that wait for a thread
DEADLINE_S = 30.0  # from the question to the ids
RETRY_AFTER_S = 5.0

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@attrs.define(eq=False)
class EncoderThreads:
    """Threads for work of one size, and how many may wait for one."""

    threads: int
    waiting_max: int
    limiter: trio.CapacityLimiter = attrs.field(
        default=attrs.Factory(lambda self: trio.CapacityLimiter(self.threads), takes_self=True), init=False
    )

    @property
    def full(self) -> bool:
        return self.limiter.statistics().tasks_waiting >= self.waiting_max


@attrs.define(eq=False)
class Encoders:
    """Shared by all requests of a server."""

    small: EncoderThreads = attrs.field(factory=lambda: EncoderThreads(threads=4, waiting_max=SMALL_WAITING_MAX))
    large: EncoderThreads = attrs.field(factory=lambda: EncoderThreads(threads=2, waiting_max=LARGE_WAITING_MAX))
    deadline_s: float = DEADLINE_S
    run_blocking: Callable[..., Awaitable[Any]] | None = None  # what runs the work where there are no threads

    async def read(self, body: bytes | str, work: Callable[[*Ts, bytes | str], T], *args: *Ts) -> T:
        """`work(*args, body)`, which for a small body takes less time than the way to a thread."""
        if len(body) <= SMALL_BYTES:
            return work(*args, body)
        return await self.run(len(body), work, *args, body)

    async def run(self, request_bytes: int, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """`work(*args)` in a thread. Raises RefusalError queue_full, timeout, and what the work raises."""
        if self.run_blocking is not None:
            done: T = await self.run_blocking(work, *args)
            return done
        lane = self.small if request_bytes <= SMALL_BYTES else self.large
        if lane.full:
            message = f"{lane.waiting_max} requests of this size wait to be encoded already; try again later"
            raise refuse("queue_full", message, retry_after_s=RETRY_AFTER_S)
        with trio.move_on_after(self.deadline_s):
            return await trio.to_thread.run_sync(work, *args, limiter=lane.limiter, abandon_on_cancel=True)
        message = f"the request could not be encoded within {self.deadline_s:.0f} s; send less text, or try again later"
        raise refuse("timeout", message)
