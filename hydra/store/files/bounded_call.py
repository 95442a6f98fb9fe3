"""A call that may hang, and for how long it is waited for.

Promises: an answer within the limit, whatever the call does: not every wait in a library has a timeout, and the lookup
of a name has none at all. Refuses to know what is being called. What was given up goes on in a thread that nobody waits
for, and that does not keep the process.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class StillAtWork(Exception):
    """The limit passed."""


def within(limit_s: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises. Raises StillAtWork."""
    returned: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            returned.append(call())
        except BaseException as error:  # noqa: BLE001 - carried to the caller
            raised.append(error)

    thread = threading.Thread(target=run, name="hydra-bounded", daemon=True)
    thread.start()
    thread.join(max(0.0, limit_s))
    if raised:
        raise raised[0]
    if returned:
        return returned[0]
    raise StillAtWork(f"no answer within {limit_s:.0f} s")
