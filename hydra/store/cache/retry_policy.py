"""How long a source that fails is tried again: back-off, what the server itself asks for, and an end.

Promises: every wait is bounded, and so is their sum without progress; a source of which nothing has been heard yet is
given up soon, for then it is the network that is missing. Refuses to know what is being fetched.
"""

import random
import time
from collections.abc import Callable
from typing import TypeVar

import attrs

from hydra.store.cache.range_source import SourceFault, SourceSilent, SourceUnfit
from hydra.store.files.bounded_call import StillAtWork, within

BRIEF_SILENCE_S = 3.0  # with a source of which nothing was heard, when there is another

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """Exponential back-off with jitter: the n-th wait is between half and all of `first_s` x 2^n, at most `longest_s`.

    After `tries` faults in a row, or `deadline_s` after the first of them, the last fault is raised; of a source that
    has never answered, `silence_s` after it was first asked. An answer takes at most `reply_s`. Fewer than
    `floor_bytes` in `stall_s` are a fault too. Clock, sleep and jitter are handed in by tests.
    """

    tries: int = 8
    first_s: float = 0.5
    longest_s: float = 30.0
    deadline_s: float = 300.0
    silence_s: float = 8.0
    reply_s: float = 120.0
    stall_s: float = 60.0
    floor_bytes: int = 64 << 10
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random

    def brief(self) -> "RetryPolicy":
        """With a source when there are others: long enough for a hiccup, too short for somebody to notice."""
        return attrs.evolve(
            self,
            tries=min(self.tries, 3),
            deadline_s=min(self.deadline_s, 5.0),
            silence_s=min(self.silence_s, BRIEF_SILENCE_S),
        )


@attrs.define(eq=False)
class Retry:
    """One source being tried again and again. `stopped` is asked while waiting and ends the wait."""

    policy: RetryPolicy
    stopped: Callable[[], bool] = lambda: False
    heard: bool = False  # something has come back from this source, if only an error
    _faults: int = attrs.field(default=0, init=False)
    _since_s: float = attrs.field(default=0.0, init=False)
    _began_s: float = attrs.field(default=attrs.Factory(lambda self: self.policy.now(), takes_self=True), init=False)

    def progressed(self) -> None:
        """Something came: the count begins anew."""
        self.heard = True
        self._faults = 0

    def reply_s(self) -> float:
        """How long the next answer may take."""
        policy = self.policy
        if self.heard:
            return policy.reply_s
        return min(policy.reply_s, self._began_s + policy.silence_s - policy.now())

    def wait_or_raise(self, fault: SourceFault) -> None:
        """Waits before the next try, or raises `fault` when there should be none."""
        policy, now_s = self.policy, self.policy.now()
        if self._faults == 0:
            self._since_s = now_s
        self._faults += 1
        self.heard = self.heard or not isinstance(fault, SourceSilent)
        longest = min(policy.longest_s, policy.first_s * 2 ** (self._faults - 1))
        delay_s = max(longest * (0.5 + 0.5 * policy.jitter()), fault.retry_after_s or 0.0)
        left_s = self._since_s + policy.deadline_s - now_s
        if not self.heard:
            left_s = min(left_s, self._began_s + policy.silence_s - now_s)
        if isinstance(fault, SourceUnfit) or self._faults >= policy.tries or delay_s > left_s:
            raise fault
        while delay_s > 0 and not self.stopped():
            policy.sleep(min(delay_s, 0.25))
            delay_s -= 0.25


def retry(call: Callable[[], T], policy: RetryPolicy, *, heard: bool = False) -> T:
    """What `call` returns in the end. Raises its last SourceFault; any other exception at once. A call that does not
    return in time is a silent source, whatever becomes of it. `heard`: this source has answered before.
    """
    attempt = Retry(policy, heard=heard)
    while True:
        try:
            return within(attempt.reply_s(), call)
        except StillAtWork as error:
            attempt.wait_or_raise(SourceSilent(str(error)))
        except SourceFault as fault:
            attempt.wait_or_raise(fault)
