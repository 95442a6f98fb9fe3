"""One seed, one history: the virtual clock and Trio's scheduler, pinned in this one place.

Trio shuffles ready tasks on purpose. The two private names below are those that its own determinism test relies on;
`test_determinism.py` fails loudly if a release moves them. The shuffle is seeded, so the order in which tasks run is
one more thing that every seed explores.
"""

import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio
import trio.testing

T = TypeVar("T")


@contextmanager
def pinned_scheduler(seed: int) -> Iterator[None]:
    """While it lasts, Trio runs tasks in an order that depends on the seed alone."""
    run: Any = trio._core._run
    kept = run._ALLOW_DETERMINISTIC_SCHEDULING, run._r
    run._ALLOW_DETERMINISTIC_SCHEDULING, run._r = True, random.Random(seed)
    try:
        yield
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING, run._r = kept


def run_sim(seed: int, main: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Runs `main(*args)` under virtual time: whenever everybody waits, the clock jumps to the next deadline."""
    with pinned_scheduler(seed):
        return trio.run(main, *args, clock=trio.testing.MockClock(autojump_threshold=0))


def quiet() -> None:
    """Logging costs more than the whole simulation."""
    import logging

    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
