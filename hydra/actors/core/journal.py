"""The journal's ring: the last few thousand entries with ascending ids, and who asked for which of them. Pure.

Promises that an id is never used twice and that what fell out of the ring can be told from what never was. It knows no
clock, no wire, and no meaning of an entry but whose it is.
"""

from collections import deque
from itertools import islice

import attrs

from hydra.protocol.ids import NodeId, RouteId
from hydra.protocol.journal_story import matches_session, pauses_of
from hydra.protocol.messages.journal import JournalEntry, RecordedEntry

ENTRIES_MAX = 4096  # in the ring; a failover of 256 answers is fewer than 1,000
ANSWER_MAX = 500  # entries in one reply
IDS_PER_S = 1_000_000  # ids begin at the coordinator's wall clock, so that a later life's are higher


@attrs.frozen(kw_only=True)
class JournalFilter:
    """What is asked for; an empty field is no condition."""

    session: str = ""
    node: str = ""
    route: RouteId | None = None

    def names(self, entry: JournalEntry) -> bool:
        if self.node and self.node != entry.node and self.node not in entry.nodes:
            return False
        return self.route is None or self.route == entry.route


@attrs.define(eq=False)
class JournalRing:
    """`newest` is the id before the first one, until there is one."""

    newest: int = 0
    entries_max: int = ENTRIES_MAX
    _entries: deque[RecordedEntry] = attrs.field(factory=deque, init=False)

    def add(self, entry: JournalEntry, time_s: float, process: NodeId) -> RecordedEntry:
        self.newest += 1
        recorded = RecordedEntry(id=self.newest, time_s=time_s, process=process, entry=entry)
        self._entries.append(recorded)
        if len(self._entries) > self.entries_max:
            self._entries.popleft()
        return recorded

    @property
    def oldest(self) -> int:
        """The id of the first entry that is there; of the next one while there is none."""
        return self.newest - len(self._entries) + 1

    def all(self) -> tuple[RecordedEntry, ...]:
        return tuple(self._entries)

    def select(self, after: int, wanted: JournalFilter) -> tuple[tuple[RecordedEntry, ...], bool]:
        """The oldest of those that are wanted, and whether there are more. An `after` that this ring never gave is of
        another life: then everything is new.
        """
        since = after if after <= self.newest else 0
        candidates = self._of_session(wanted.session) if wanted.session else self._entries
        new = (one for one in candidates if one.id > since and wanted.names(one.entry))
        chosen = tuple(islice(new, ANSWER_MAX + 1))
        return chosen[:ANSWER_MAX], len(chosen) > ANSWER_MAX

    def _of_session(self, session: str) -> list[RecordedEntry]:
        """Its own entries, and what befell the cluster while it waited."""
        pauses = pauses_of(one for one in self._entries if matches_session(one, session))
        return [
            one for one in self._entries if matches_session(one, session) or any(pause.covers(one) for pause in pauses)
        ]
