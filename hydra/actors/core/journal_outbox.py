"""A member's part of the journal: its last few hundred entries, said to the coordinator, and again to the next one.

Entries are numbered, so that saying one twice does no harm and one that is missing is counted where it is missed. Under
pressure, or while there is no coordinator, the oldest are forgotten. Nobody waits for an entry.
"""

from collections import deque

import attrs

from hydra.actors.core.facts import Joined, Left, Undelivered
from hydra.actors.core.machine import CancelTimer, Effect, Event, Send, SetTimer, TimerFired
from hydra.actors.core.names import JOURNAL, MEMBER
from hydra.protocol.messages.journal import AgedEntry, JournalEntries, JournalEntry, ProcessRole

KEPT_MAX = 512  # entries
MESSAGE_MAX = 128  # entries in one message: far below what the lane carries
TOGETHER_S = 0.1  # entries of one moment go in one message
OUTSIDE_S = 0.5


@attrs.frozen
class LogEntry:
    """Effect: a line of this process's log."""

    entry: JournalEntry


@attrs.define(eq=False)
class JournalOutbox:
    """An actor of every process but the coordinator: `journal`, a sibling of `member`."""

    node: str
    role: ProcessRole
    _kept: deque[tuple[float, JournalEntry]] = attrs.field(factory=lambda: deque(maxlen=KEPT_MAX), init=False)
    _written: int = attrs.field(default=0, init=False)  # the number of the last one
    _said: int = attrs.field(default=0, init=False)  # the number up to which this coordinator was told
    _inside: bool = attrs.field(default=False, init=False)
    _left: tuple[float, str] = attrs.field(default=(0.0, ""), init=False)  # when this was last outside, and why
    _waits: bool = attrs.field(default=False, init=False)  # for the moment to send

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        match event:
            case JournalEntry():
                return self._write(event, now_s)
            case Joined():
                self._inside, self._said = True, 0
                return [CancelTimer("outside"), *self._soon(now_s)]
            case Left(why=why):
                self._inside, self._waits, self._left = False, False, (now_s, why)
                return [CancelTimer("send"), SetTimer("outside", now_s + OUTSIDE_S)]
            case TimerFired(key="outside"):
                return self._cut_off()
            case TimerFired(key="send"):
                self._waits = False
                return self._send(now_s) if self._inside else []
            case Undelivered():
                return []  # a bound of ours is far below the lane's
            case _:
                raise AssertionError(f"a journal cannot be told {event!r}")

    def check(self) -> None:
        """What is kept has numbers without a gap, and no more was said than was written. Raises AssertionError."""
        assert 0 <= self._said <= self._written and len(self._kept) <= min(KEPT_MAX, self._written)
        assert self._inside or not self._waits, "it would speak without a membership"

    def _cut_off(self) -> list[Effect]:
        """Most who leave are back at once: their greetings crossed, or a new coordinator answered."""
        left_s, why = self._left
        reason = "another coordinator began" if why == "new term" else "the coordinator does not know it"
        entry = JournalEntry(kind="cut_off", actor=MEMBER, node=self.node, role=self.role, reason=reason)
        return self._write(entry, left_s)

    def _write(self, entry: JournalEntry, now_s: float) -> list[Effect]:
        self._written += 1
        self._kept.append((now_s, entry))
        return [LogEntry(entry), *self._soon(now_s)]

    def _soon(self, now_s: float) -> list[Effect]:
        if not self._inside or self._waits or self._said == self._written:
            return []
        self._waits = True
        return [SetTimer("send", now_s + TOGETHER_S)]

    def _send(self, now_s: float) -> list[Effect]:
        oldest = self._written - len(self._kept) + 1
        first = max(self._said + 1, oldest)
        skipped = first - oldest
        entries = tuple(
            AgedEntry(age_s=max(0.0, now_s - at_s), entry=entry)
            for at_s, entry in list(self._kept)[skipped : skipped + MESSAGE_MAX]
        )
        if not entries:
            return []
        self._said = first + len(entries) - 1
        return [Send(JOURNAL, JournalEntries(first=first, entries=entries)), *self._soon(now_s)]
