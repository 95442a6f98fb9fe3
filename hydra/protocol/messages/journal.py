"""The journal: what a cluster decided and suffered, one entry each, and how entries travel and are asked for.

An entry names things by their ids and never holds a word of a prompt or of an answer. SPEC.md says what each kind means
and which fields it fills. This file does not know who writes an entry, nor how it reads.
"""

from typing import Literal

import attrs

from hydra.protocol.ids import AskId, Epoch, NodeId, RouteId, SessionId

JournalKind = Literal[
    "coordinator_began",
    "joined",
    "left",
    "lost",
    "suspect",
    "recovered",
    "unusable",
    "usable",
    "turned_away",
    "planned",
    "slice_loading",
    "slice_loaded",
    "load_failed",
    "activating",
    "slice_ready",
    "route_up",
    "route_down",
    "model_stalled",
    "model_gone",
    "stale_dropped",
    "cut_off",
    "child_started",
    "child_died",
    "child_given_up",
    "child_ended",
    "session_interrupted",
    "session_reopened",
    "session_resumed",
    "session_refused",
    "entries_lost",
]
ProcessRole = Literal["coordinator", "worker", "frontend", "parent", ""]
REASON_MAX = 500  # characters; what is longer is cut


@attrs.frozen(kw_only=True)
class JournalEntry:
    """One decision or event. Fields that its kind does not fill keep their defaults."""

    kind: JournalKind
    actor: str = ""  # who decided or saw it
    node: str = ""  # about whom it is
    role: ProcessRole = ""  # of that node
    model_id: str = ""
    route: RouteId | None = None
    epoch: Epoch | None = None
    session: SessionId | None = None  # as its frontend numbers it
    response_id: str = ""  # as the API's reader knows the same session
    nodes: tuple[str, ...] = ()  # in stage order
    first_layer: int | None = None
    end_layer: int | None = None
    reason: str = ""
    pid: int = 0
    count: int = 0
    tokens: int = 0
    took_s: float | None = None


@attrs.frozen(kw_only=True)
class AgedEntry:
    """An entry on its way to the coordinator: clocks differ, ages do not."""

    age_s: float  # when it was sent
    entry: JournalEntry


@attrs.frozen(kw_only=True)
class JournalEntries:
    """A member -> the coordinator's journal. The entries are numbered from `first` in this process; what is said twice
    is known by its number, and a number left out is an entry that was lost.
    """

    first: int
    entries: tuple[AgedEntry, ...]


@attrs.frozen(kw_only=True)
class RecordedEntry:
    """An entry in the coordinator's ring. Ids ascend, across lives of the coordinator too."""

    id: int
    time_s: float  # since 1970, by the coordinator's clock
    process: NodeId  # who wrote it
    entry: JournalEntry


@attrs.frozen(kw_only=True)
class JournalRequest:
    """The entries with an id above `after`, oldest first. Answered by JournalReply.

    `session` is a response id or a session's number: its own entries, and those of the cluster from its last token
    before a pause to the first one after. An empty field, and a `route` of None, is no condition.
    """

    ask: AskId
    after: int = 0
    session: str = ""
    node: str = ""
    route: RouteId | None = None


@attrs.frozen(kw_only=True)
class JournalReply:
    """`oldest` and `newest` are the ids that the ring has, of whatever entry; `more`: the answer was cut short."""

    ask: AskId
    entries: tuple[RecordedEntry, ...]
    oldest: int
    newest: int
    more: bool = False
