"""The coordinator's journal as an actor: it takes entries in, from its own process and from members, and answers.

What is derived from entries lives here too: the histograms, the counts by kind, the last losses. A member may write
only what its role sees. Nothing is kept for those who follow: each asks again from the id it has.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping

import attrs

from hydra.actors.core.facts import Undelivered
from hydra.actors.core.histogram import Histogram
from hydra.actors.core.journal import IDS_PER_S, JournalFilter, JournalRing
from hydra.actors.core.journal_outbox import LogEntry
from hydra.actors.core.machine import Effect, Event, Received, Send
from hydra.protocol.ids import NodeId, PeerId
from hydra.protocol.journal_story import SAME_MOMENT_S
from hydra.protocol.messages.journal import (
    JournalEntries,
    JournalEntry,
    JournalKind,
    JournalReply,
    JournalRequest,
    RecordedEntry,
)
from hydra.protocol.messages.membership import MemberRole
from hydra.protocol.messages.models import LossStatus, Sample

LOSSES_MAX = 20
PEERS_MAX = 4096  # whose numbers are remembered
LOSS_BEFORE_S = 1.0  # a loss may have been seen so long before the last token that its reader got: steps were under way
MAY_WRITE: Mapping[MemberRole, frozenset[JournalKind]] = {
    "worker": frozenset({"cut_off"}),
    "frontend": frozenset({"cut_off", "session_interrupted", "session_reopened", "session_resumed", "session_refused"}),
    "parent": frozenset({"cut_off", "child_started", "child_died", "child_given_up", "child_ended"}),
}


def _histograms() -> dict[JournalKind, Histogram]:
    pause = "What readers waited from the last token before an interruption to the first one after."
    return {
        "session_resumed": Histogram("hydra_session_pause_seconds", pause),
        "slice_loaded": Histogram("hydra_slice_load_seconds", "How long workers took to load their layers."),
        "route_up": Histogram("hydra_route_down_seconds", "From the loss of a route to the next one that is up."),
    }


@attrs.define(eq=False)
class JournalKeeper:
    """`wall_s` is the time when this coordinator began; entries are timed from there by a clock that is never set."""

    wall_s: float
    member_of: Callable[[PeerId], tuple[NodeId, MemberRole] | None]
    ring: JournalRing = attrs.field(init=False)
    lost: int = attrs.field(default=0, init=False)  # entries of members that never came
    refused: int = attrs.field(default=0, init=False)  # entries that were not their writer's to say
    _began_s: float | None = attrs.field(default=None, init=False)
    _heard: dict[PeerId, int] = attrs.field(factory=dict, init=False)
    _counts: Counter[JournalKind] = attrs.field(factory=Counter, init=False)
    _histograms: dict[JournalKind, Histogram] = attrs.field(factory=_histograms, init=False)
    _losses: deque[LossStatus] = attrs.field(factory=lambda: deque(maxlen=LOSSES_MAX), init=False)

    def __attrs_post_init__(self) -> None:
        self.ring = JournalRing(newest=int(self.wall_s * IDS_PER_S))

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        if self._began_s is None:
            self._began_s = now_s
        match event:
            case JournalEntry():
                self._record(event, now_s, NodeId("coordinator"))
                return [LogEntry(event)]
            case Received(sender=sender, message=JournalEntries() as entries):
                self._take(sender.peer, entries, now_s)
                return []
            case Received(sender=sender, message=JournalRequest() as request):
                return [Send(sender, self._reply(request))]
            case Undelivered():
                return []  # of its bounded size only a lane's end is the cause: the asker has a deadline
            case _:
                raise AssertionError(f"a journal cannot be told {event!r}")

    def check(self) -> None:
        """Each entry is counted once, and the ring is in order. Raises AssertionError."""
        ids = [recorded.id for recorded in self.ring.all()]
        assert ids == sorted(set(ids)), "ids do not ascend"
        assert len(ids) <= self._counts.total(), "an entry was not counted"
        assert len(self._heard) <= PEERS_MAX

    def losses(self) -> tuple[LossStatus, ...]:
        return tuple(self._losses)

    def samples(self) -> tuple[Sample, ...]:
        text = "Entries of the journal, by kind."
        counts = (
            Sample(name="hydra_journal_entries_total", kind="counter", help=text, value=count, labels=(("kind", kind),))
            for kind, count in sorted(self._counts.items())
        )
        lost = Sample(
            name="hydra_journal_entries_lost_total",
            kind="counter",
            help="Entries of other processes that never came.",
            value=self.lost,
        )
        return (*counts, lost, *(histogram.sample() for histogram in self._histograms.values()))

    # ------------------------------------------------------------ taking in

    def _take(self, peer: PeerId, message: JournalEntries, now_s: float) -> None:
        member = self.member_of(peer)
        if member is None:
            return  # it was lost in this very moment, and says it again when it is back
        node, role = member
        heard = self._heard.get(peer)
        missing = message.first - 1 - heard if heard is not None else 0
        if missing > 0:
            self.lost += missing
            lost = JournalEntry(kind="entries_lost", actor="journal", node=node, role=role, count=missing)
            self._record(lost, now_s, NodeId("coordinator"))
        new = message.entries if heard is None else message.entries[max(0, heard + 1 - message.first) :]
        self._remember(peer, max(heard or 0, message.first + len(message.entries) - 1))
        for aged in new:
            if aged.entry.kind in MAY_WRITE[role]:
                self._record(aged.entry, now_s - aged.age_s, node)
            else:
                self.refused += 1

    def _remember(self, peer: PeerId, number: int) -> None:
        if peer not in self._heard and len(self._heard) >= PEERS_MAX:
            del self._heard[next(iter(self._heard))]
        self._heard[peer] = number

    def _record(self, entry: JournalEntry, at_s: float, process: NodeId) -> None:
        assert self._began_s is not None
        recorded = self.ring.add(entry, max(0.0, self.wall_s + at_s - self._began_s), process)
        self._counts[entry.kind] += 1
        histogram = self._histograms.get(entry.kind)
        if histogram is not None and entry.took_s is not None:
            histogram.observe(entry.took_s)
        self._note_loss(recorded)

    # ------------------------------------------------------------ losses

    def _note_loss(self, recorded: RecordedEntry) -> None:
        entry = recorded.entry
        if (entry.kind == "lost" and entry.role == "worker") or (
            entry.kind == "child_died" and entry.role == "coordinator"
        ):
            self._losses.append(LossStatus(time_s=recorded.time_s, node_id=entry.node, why=entry.reason))
            for earlier in self.ring.all():  # what a frontend said of it may have come before this
                self._cost(earlier, only=len(self._losses) - 1)
        else:
            self._cost(recorded)

    def _cost(self, recorded: RecordedEntry, only: int | None = None) -> None:
        """An answer waited: the last loss in that time is the cause. `only`: nothing is changed unless it is this one,
        and no other could be meant.
        """
        entry, until_s = recorded.entry, recorded.time_s
        resumed = entry.kind == "session_resumed" and entry.tokens > 0
        if not resumed and entry.kind != "session_interrupted":
            return
        from_s = until_s - (entry.took_s or 0.0) - LOSS_BEFORE_S
        within = [i for i, loss in enumerate(self._losses) if from_s <= loss.time_s <= until_s + SAME_MOMENT_S]
        if not within or (only is not None and within != [only]):
            return
        cause = max(within, key=lambda index: self._losses[index].time_s)
        loss = self._losses[cause]
        if resumed:
            longest_s = max(entry.took_s or 0.0, loss.longest_pause_s or 0.0)
            self._losses[cause] = attrs.evolve(loss, longest_pause_s=longest_s)
        else:
            self._losses[cause] = attrs.evolve(loss, interrupted=loss.interrupted + 1)

    # ------------------------------------------------------------ answering

    def _reply(self, request: JournalRequest) -> JournalReply:
        wanted = JournalFilter(session=request.session, node=request.node, route=request.route)
        entries, more = self.ring.select(request.after, wanted)
        return JournalReply(
            ask=request.ask, entries=entries, oldest=self.ring.oldest, newest=self.ring.newest, more=more
        )
