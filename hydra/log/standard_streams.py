"""The three streams that a process is born with: they are open, and what is printed there never ends the process.

A program may be started without them, or their reader may leave. What is said of that goes to the log.
"""

import os
import sys
from typing import TextIO

import structlog

log = structlog.get_logger()


def hold_standard_streams() -> None:
    """A descriptor that is closed becomes the null device, before a socket or a pipe gets its number and is then
    written to as if it were standard error.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one


def print_line(line: str, *, error: bool = False) -> None:
    """For whoever reads standard output (or standard error), if anybody does."""
    stream = sys.stderr if error else sys.stdout
    try:
        print(line, file=stream, flush=True)
    except (OSError, ValueError) as fault:
        log.warning("a line could not be printed", line=line, why=str(fault))
        for own in (sys.__stdout__, sys.__stderr__):
            if own is not None and own is stream and not own.closed:
                discard(own)


def discard(stream: TextIO) -> None:
    """What its buffer still holds would fail once more when the interpreter ends, and be its exit status."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
