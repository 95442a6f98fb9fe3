"""How often lines of one kind are shown: some at once, then one a second. The others are counted.

A kind is a level, an event's name and, for an exception, its type and the place in the source that raised it. None of
these comes from a socket or a request, so that a crowd or an attacker cannot fill a disk, and an error that was not
seen before is always shown. It is a processor of structlog and writes nothing itself.
"""

import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeAlias

import attrs
import structlog

AT_ONCE = 10
PER_S = 1.0
KINDS_MAX = 512  # that are remembered; the one that was heard of longest ago is forgotten first
UNLIMITED = frozenset({"debug"})  # whoever asks for these lines wants them all

LineKind: TypeAlias = tuple[str, str, str]


@attrs.define
class _Bucket:
    tokens: float
    filled_s: float
    hidden: int = 0  # since the last one that was shown


@attrs.define(eq=False)
class LogRate:
    """`clock` is monotonic, in seconds."""

    clock: Callable[[], float] = time.monotonic
    at_once: int = AT_ONCE
    per_s: float = PER_S
    kinds_max: int = KINDS_MAX
    hidden: int = attrs.field(default=0, init=False)  # of all kinds, since the start
    _buckets: OrderedDict[LineKind, _Bucket] = attrs.field(factory=OrderedDict, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def __call__(self, logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """The event, with `not_shown` if others like it were hidden before it. Raises DropEvent to hide it."""
        if method in UNLIMITED:
            return event
        kind = (method, str(event.get("event", "")), _origin(event.get("exc_info")))
        with self._lock:
            bucket = self._bucket(kind)
            if bucket.tokens < 1.0:
                bucket.hidden += 1
                self.hidden += 1
                raise structlog.DropEvent
            bucket.tokens -= 1.0
            hidden, bucket.hidden = bucket.hidden, 0
        return {**event, "not_shown": f"{hidden} more like this"} if hidden else event

    def _bucket(self, kind: LineKind) -> _Bucket:
        now_s = self.clock()
        bucket = self._buckets.setdefault(kind, _Bucket(float(self.at_once), now_s))
        self._buckets.move_to_end(kind)
        if len(self._buckets) > self.kinds_max:
            self._buckets.popitem(last=False)
        bucket.tokens = min(float(self.at_once), bucket.tokens + (now_s - bucket.filled_s) * self.per_s)
        bucket.filled_s = now_s
        return bucket


def _origin(exc_info: Any) -> str:
    """Type and place of an exception: all that tells two kinds of it apart, and nothing of what it says."""
    if not exc_info:
        return ""
    error = exc_info if isinstance(exc_info, BaseException) else sys.exc_info()[1]
    if isinstance(exc_info, tuple):
        error = exc_info[1]
    if error is None:
        return ""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__} {place}"
