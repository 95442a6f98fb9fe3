"""Logging as data, on standard error; standard output belongs to results. Role and node are bound once per process.

A log line never raises and never waits: see LogSink. Lines of one kind have a rate: see LogRate. The traceback of a
crash goes the same way, and has a moment at the end to get out.
"""

import atexit
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import structlog

from hydra.log.log_rate import LogRate
from hydra.log.log_sink import LogSink, to_descriptor
from hydra.log.standard_streams import hold_standard_streams, print_line

FLUSH_S = 1.0  # for the last lines at the end of a process
ON_EVERY_LINE = ("level", "timestamp", "role", "node", "not_shown")
LOST = "log lines could not be written"

_sink: LogSink | None = None  # of this process


class _Lines:
    """What structlog calls a logger: every level is one more line."""

    def msg(self, line: str) -> None:
        if _sink is not None:
            _sink.put(line)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def set_up_logging(role: str, node: str = "") -> None:
    """HYDRA_LOG is debug, info (default), warning or error; lines are for people on a terminal, JSON elsewhere."""
    hold_standard_streams()
    level = getattr(logging, os.environ.get("HYDRA_LOG", "info").upper(), logging.INFO)
    for_people = sys.stderr is not None and sys.stderr.isatty()
    last: Any = structlog.dev.ConsoleRenderer() if for_people else structlog.processors.JSONRenderer()
    bound = {"role": role, **({"node": node} if node else {})}
    _open_sink(bound, for_people=for_people)
    structlog.configure(
        processors=[
            LogRate(),
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            *([_as_sentence] if for_people else []),
            _careful(last),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_Lines,
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**bound)


def log_lines_lost() -> int:
    """By this process so far."""
    return _sink.lost if _sink is not None else 0


def flush_log(within_s: float = FLUSH_S) -> None:
    """Before a process ends, or before something else is written to standard error that comes later."""
    if _sink is not None:
        _sink.flush(within_s)


def say_at_end(text: str) -> None:
    """Plain lines for people, such as a complaint, behind everything that was logged before."""
    if _sink is None:
        print_line(text, error=True)
    else:
        _sink.put(text)
        _sink.flush(2 * FLUSH_S)


def _open_sink(bound: dict[str, str], *, for_people: bool) -> None:
    global _sink  # noqa: PLW0603 - standard error is one per process as well

    def notice(lines: int, reason: str) -> str:
        if for_people:
            return f"{lines} {LOST}: {reason}"
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        lost_line = {"event": f"{lines} {LOST}", "lines": lines, "why": reason, "level": "warning", "timestamp": now}
        return json.dumps(bound | lost_line)

    if _sink is not None:
        _sink.close(FLUSH_S)
    else:
        atexit.register(flush_log)
    stream, own = sys.stderr, sys.__stderr__
    if own is not None and own is stream:
        _sink = LogSink(to_descriptor(own.fileno()), notice)
        sys.excepthook = _tell_crash
    else:  # somebody looks on: a test
        _sink = LogSink(_to_stream(stream), notice)
    _sink.start()


def _to_stream(stream: Any) -> Callable[[bytes], int]:
    def write(content: bytes) -> int:
        if stream is None:
            raise ValueError("there is no standard error")
        stream.write(content.decode())
        stream.flush()
        return len(content)

    return write


def _as_sentence(logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A line that brings its own sentence is that sentence, beside what every line has; its fields are for programs."""
    if "text" not in event:
        return event
    return {**{name: event[name] for name in ON_EVERY_LINE if name in event}, "event": event["text"]}


def _careful(render: Any) -> Callable[[Any, str, structlog.typing.EventDict], str]:
    """A value that cannot be shown costs its line's details and nothing else."""

    def rendered(logger: Any, method: str, event: structlog.typing.EventDict) -> str:
        name = str(event.get("event"))
        try:
            return str(render(logger, method, event))
        except Exception as error:  # noqa: BLE001 - whatever a foreign __repr__ may raise
            return json.dumps({"event": name, "level": method, "why": f"its details cannot be shown: {error!r}"})

    return rendered


def _tell_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As the interpreter does, but without waiting for ever for whoever does not read."""
    say_at_end("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"))
