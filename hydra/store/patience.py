"""How long a source that fails is tried again: back-off, what the server itself asks for, and an end.

Promises: every wait is bounded, and so is their sum without progress. Refuses to know what is being fetched.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import attrs

from hydra.store.range_source import SourceFault, SourceUnfit

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Patience:
    """Exponential back-off with jitter: the n-th wait is between half and all of `first_s` x 2^n, at most `longest_s`.

    After `tries` faults in a row, or `deadline_s` after the first of them, the last fault is raised. Fewer than
    `floor_bytes` in `stall_s` are a fault too. Clock, sleep and jitter are handed in by tests.
    """

    tries: int = 8
    first_s: float = 0.5
    longest_s: float = 30.0
    deadline_s: float = 300.0
    stall_s: float = 60.0
    floor_bytes: int = 64 << 10
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random

    def brief(self) -> "Patience":
        """With a source when there are others: long enough for a hiccup, too short for somebody to notice."""
        return attrs.evolve(self, tries=min(self.tries, 3), deadline_s=min(self.deadline_s, 5.0))


@attrs.define(eq=False)
class Trial:
    """One source being tried again and again. `stopped` is asked while waiting and ends the wait."""

    patience: Patience
    stopped: Callable[[], bool] = lambda: False
    _faults: int = attrs.field(default=0, init=False)
    _since_s: float = attrs.field(default=0.0, init=False)

    def progressed(self) -> None:
        """Something came: the count begins anew."""
        self._faults = 0

    def endure(self, fault: SourceFault) -> None:
        """Waits before the next try, or raises `fault` when there should be none."""
        patience = self.patience
        if self._faults == 0:
            self._since_s = patience.now()
        self._faults += 1
        longest = min(patience.longest_s, patience.first_s * 2 ** (self._faults - 1))
        delay_s = max(longest * (0.5 + 0.5 * patience.jitter()), fault.retry_after_s or 0.0)
        left_s = self._since_s + patience.deadline_s - patience.now()
        if isinstance(fault, SourceUnfit) or self._faults >= patience.tries or delay_s > left_s:
            raise fault
        while delay_s > 0 and not self.stopped():
            patience.sleep(min(delay_s, 0.25))
            delay_s -= 0.25


def persist(call: Callable[[], T], patience: Patience) -> T:
    """What `call` returns in the end. Raises its last SourceFault; any other exception at once."""
    trial = Trial(patience)
    while True:
        try:
            return call()
        except SourceFault as fault:
            trial.endure(fault)


def persist_while_heard(call: Callable[[], T], patience: Patience, silence_s: float) -> T:
    """As `persist`, but a source that says nothing is given up after `silence_s`, whatever its patience; one that has
    asked to be left alone for a while is there, and is waited for.

    It runs in a thread of its own: a resolver or a connection that hangs cannot be interrupted, only left behind.
    """
    faults: list[SourceFault] = []
    results: list[T] = []
    others: list[BaseException] = []
    over, given_up = threading.Event(), threading.Event()

    def once() -> T:
        if given_up.is_set():
            raise SourceUnfit("nobody waits for it any more")
        try:
            return call()
        except SourceFault as fault:
            faults.append(fault)
            raise

    def run() -> None:
        try:
            results.append(persist(once, patience))
        except BaseException as why:  # noqa: BLE001 - the caller raises it
            others.append(why)
        finally:
            over.set()

    threading.Thread(target=run, name="hydra-asking", daemon=True).start()
    if not over.wait(silence_s):
        if not faults or faults[-1].retry_after_s is None:
            given_up.set()
            raise faults[-1] if faults else SourceFault(f"no answer within {silence_s:g} s")
        over.wait()
    if others:
        raise others[0]
    return results[0]
