"""Where log lines go: a bounded queue, and a thread that writes.

A process never waits for its log and never ends because of it. A line that finds no room in the queue, or that cannot
be written, is counted; the next one that can be written is followed by a notice of how many were lost. It knows no
format and no level.
"""

import os
import select
import threading
from collections import deque
from collections.abc import Callable

import attrs

LINES_MAX = 10_000
BYTES_MAX = 8 << 20


def to_descriptor(fd: int) -> Callable[[bytes], int]:
    """Writes to `fd` itself, without a buffer that the interpreter would write again at its end."""

    def write(content: bytes) -> int:
        while True:
            try:
                return os.write(fd, content)
            except BlockingIOError:  # who shares this terminal or pipe has made it non-blocking
                select.select([], [fd], [])

    return write


@attrs.define(eq=False)
class LogSink:
    """`write` takes bytes and says how many it took; it may block and may raise OSError or ValueError (closed).

    `notice(lines, reason)` is the line that tells of lines that were lost.
    """

    write: Callable[[bytes], int]
    notice: Callable[[int, str], str]
    lines_max: int = LINES_MAX
    bytes_max: int = BYTES_MAX
    lost: int = attrs.field(default=0, init=False)  # lines that were not written, and never will be
    _told: int = attrs.field(default=0, init=False)  # of the lost ones
    _reason: str = attrs.field(default="", init=False)
    _lines: deque[bytes] = attrs.field(factory=deque, init=False)
    _waiting_bytes: int = attrs.field(default=0, init=False)
    _writing: bool = attrs.field(default=False, init=False)
    _torn: bool = attrs.field(default=False, init=False)  # the last line was written in part
    _closed: bool = attrs.field(default=False, init=False)
    _changed: threading.Condition = attrs.field(factory=threading.Condition, init=False)

    def start(self) -> None:
        """A daemon thread: one that is stuck in a write does not keep the process."""
        threading.Thread(target=self._write_lines, name="log", daemon=True).start()

    def put(self, line: str) -> None:
        """Never blocks, never raises."""
        content = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._changed:
            if self._closed:
                self._lose("the log is closed")
                return
            if len(self._lines) >= self.lines_max or self._waiting_bytes + len(content) > self.bytes_max:
                self._lose("nobody takes them as fast as they come")
                return
            self._lines.append(content)
            self._waiting_bytes += len(content)
            self._changed.notify_all()

    def flush(self, within_s: float) -> bool:
        """Whether everything was written, or lost, in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines and not self._writing, within_s)

    def close(self, within_s: float) -> None:
        """What waits is written; later lines are lost."""
        self.flush(within_s)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _write_lines(self) -> None:
        while (line := self._take()) is not None:
            failure = self._failure_of(line)
            with self._changed:
                if failure:
                    self._lose(failure)
                owed = self.lost - self._told if not failure and not self._lines else 0
                reason = self._reason
            if owed and not self._failure_of(self.notice(owed, reason).encode("utf-8", "backslashreplace") + b"\n"):
                self._told += owed
            with self._changed:
                self._writing = False
                self._changed.notify_all()

    def _take(self) -> bytes | None:
        """The next line as soon as there is one; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._closed)
            if not self._lines:
                return None
            line = self._lines.popleft()
            self._waiting_bytes -= len(line)
            self._writing = True
            return line

    def _failure_of(self, line: bytes) -> str:
        """Writes the whole line. Returns the reason why it could not, or nothing."""
        rest = memoryview(b"\n" + line if self._torn else line)
        try:
            while rest:
                taken = self.write(bytes(rest))
                if not taken:
                    return "nothing more is taken"
                self._torn = True
                rest = rest[taken:]
        except (OSError, ValueError) as error:
            return str(error) or type(error).__name__
        self._torn = False
        return ""

    def _lose(self, reason: str) -> None:
        self.lost += 1
        self._reason = reason
