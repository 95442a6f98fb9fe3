"""The ring: ascending ids, a bound, who asked for what; and what of members' entries gets into it."""

from pathlib import Path

import attrs
import pytest

import hydra.protocol
from hydra.actors.core.facts import Joined, Left
from hydra.actors.core.journal import ANSWER_MAX, JournalFilter, JournalRing
from hydra.actors.core.journal_outbox import KEPT_MAX, MESSAGE_MAX, OUTSIDE_S, TOGETHER_S, JournalOutbox, LogEntry
from hydra.actors.core.machine import CancelTimer, Received, Send, SetTimer, TimerFired
from hydra.actors.families.journal_keeper import MAY_WRITE, JournalKeeper
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Address, Epoch
from hydra.protocol.journal_story import LINES_MAX, stories_of
from hydra.protocol.journal_text import fields_of, sentence_of
from hydra.protocol.messages.journal import (
    AgedEntry,
    JournalEntries,
    JournalEntry,
    JournalKind,
    JournalReply,
    JournalRequest,
)
from hydra.protocol.messages.membership import Welcome

SPEC = Path(hydra.protocol.__file__).parent / "SPEC.md"
LOST = JournalEntry(kind="lost", node="w1", role="worker", reason="signal 9")
WAITS = JournalEntry(
    kind="session_interrupted", session=7, response_id="chatcmpl-x", model_id="m", tokens=5, took_s=0.2, reason="r"
)
GOES_ON = attrs.evolve(WAITS, kind="session_resumed", took_s=1.2, tokens=9)


def ids(entries):
    return [recorded.id for recorded in entries]


def test_the_ring_forgets_the_oldest_and_never_uses_an_id_twice():
    ring = JournalRing(newest=100, entries_max=3)
    assert (ring.oldest, ring.newest) == (101, 100)
    for number in range(5):
        ring.add(LOST, float(number), "coordinator")
    assert ids(ring.all()) == [103, 104, 105] and (ring.oldest, ring.newest) == (103, 105)


def test_an_answer_is_bounded_and_goes_on_where_it_ended():
    ring = JournalRing(entries_max=ANSWER_MAX + 10)
    for _ in range(ANSWER_MAX + 10):
        ring.add(LOST, 0.0, "coordinator")
    first, more = ring.select(0, JournalFilter())
    assert len(first) == ANSWER_MAX and more
    rest, more = ring.select(first[-1].id, JournalFilter())
    assert ids(rest) == list(range(ANSWER_MAX + 1, ANSWER_MAX + 11)) and not more
    assert ring.select(ring.newest, JournalFilter()) == ((), False)
    assert len(ring.select(ring.newest + 1, JournalFilter())[0]) == ANSWER_MAX, "an id of another life: all is new"


def test_conditions_are_all_kept():
    ring = JournalRing()
    ring.add(LOST, 0.0, "coordinator")
    ring.add(JournalEntry(kind="planned", nodes=("w1", "w2"), route=3, epoch=Epoch(1, 2)), 0.0, "coordinator")
    ring.add(JournalEntry(kind="joined", node="w2"), 0.0, "coordinator")
    assert ids(ring.select(0, JournalFilter(node="w1"))[0]) == [1, 2]
    assert ids(ring.select(0, JournalFilter(node="w1", route=3))[0]) == [2]
    assert ids(ring.select(0, JournalFilter(route=0))[0]) == []


@pytest.mark.parametrize("name", ["chatcmpl-x", "7"])
def test_a_session_has_its_own_entries_and_those_of_the_cluster_while_it_waited(name):
    ring = JournalRing()
    ring.add(attrs.evolve(LOST, node="before"), 8.0, "coordinator")
    ring.add(LOST, 10.0, "coordinator")
    ring.add(JournalEntry(kind="route_down", model_id="other"), 10.0, "coordinator")
    ring.add(WAITS, 10.1, "f")
    ring.add(attrs.evolve(WAITS, session=8, response_id="chatcmpl-y"), 10.1, "f")
    assert ids(ring.select(0, JournalFilter(session=name))[0]) == [2, 4], "the pause goes on"
    ring.add(JournalEntry(kind="route_up", model_id="m"), 11.0, "coordinator")
    ring.add(GOES_ON, 11.1, "f")
    ring.add(LOST, 12.0, "coordinator")
    assert ids(ring.select(0, JournalFilter(session=name))[0]) == [2, 4, 6, 7]
    assert ids(ring.select(4, JournalFilter(session=name))[0]) == [6, 7]
    assert ids(ring.select(0, JournalFilter(session="9"))[0]) == []


# ---------------------------------------------------------------- stories


def recorded(*entries):
    ring = JournalRing()
    for at_s, entry in entries:
        ring.add(entry, at_s, "f" if entry.session else "coordinator")
    return ring.all()


def test_the_steps_of_a_story_add_up_to_the_pause():
    (story,) = stories_of(
        recorded(
            (10.0, LOST),
            (10.0, JournalEntry(kind="route_down", model_id="m", route=1, count=4)),
            (10.0, JournalEntry(kind="planned", model_id="m", epoch=Epoch(1, 2), nodes=("w2", "w3"))),
            (10.0, JournalEntry(kind="slice_loading", node="w2", epoch=Epoch(1, 2), first_layer=0, end_layer=4)),
            (10.0, JournalEntry(kind="slice_loading", node="w3", epoch=Epoch(1, 2), first_layer=4, end_layer=9)),
            (10.1, WAITS),
            (10.4, JournalEntry(kind="slice_loaded", node="w2", epoch=Epoch(1, 2), took_s=0.4)),
            (10.5, JournalEntry(kind="slice_loaded", node="w3", epoch=Epoch(1, 2), took_s=0.5)),
            (10.9, JournalEntry(kind="route_up", model_id="m", route=1, epoch=Epoch(1, 2), took_s=0.9)),
            (11.1, GOES_ON),
        ),
        "7",
    )
    texts = [line.text for line in story]
    assert sum(line.step_s for line in story) == pytest.approx(GOES_ON.took_s)
    assert all(line.step_s >= 0.0 for line in story) and len(story) == 8
    assert texts[0].startswith("the last token of chatcmpl-x") and "lost w1 (signal 9)" in texts
    assert "w2 layers 0-3, w3 layers 4-8" in texts[3] and "w2, w3 hold their layers" in texts[5]
    assert texts[-1] == "chatcmpl-x goes on after 1.20 s: 9 tokens computed again"


def test_a_long_story_is_folded_and_loses_no_time():
    noise = [(9.9 + number / 50, attrs.evolve(LOST, node=f"w{number}")) for number in range(30)]
    (story,) = stories_of(recorded((10.1, WAITS), *noise, (11.1, GOES_ON)), "7")
    assert len(story) == LINES_MAX and sum(line.step_s for line in story) == pytest.approx(1.2)
    assert sum("more; without --session" in line.text for line in story) == 1


@pytest.mark.parametrize("kind", JournalKind.__args__)
def test_every_kind_reads_as_one_line(kind):
    for entry in (JournalEntry(kind=kind), attrs.evolve(WAITS, kind=kind, reason="a\nb", node="w1", epoch=Epoch(1, 2))):
        assert sentence_of(entry) and "\n" not in sentence_of(entry)
        assert fields_of(entry)["kind"] == kind


def test_every_kind_has_its_row_in_the_contract():
    rows = [line for line in SPEC.read_text().splitlines() if line.startswith("| `")]
    assert [kind for kind in JournalKind.__args__ if not any(f"`{kind}`" in row.split("|")[1] for row in rows)] == []
    written = {kind for kinds in MAY_WRITE.values() for kind in kinds}
    for kind in written:
        writer = next(row.split("|")[2] for row in rows if f"`{kind}`" in row.split("|")[1])
        assert all((role in writer) == (kind in MAY_WRITE[role]) for role in MAY_WRITE) or "each member" in writer, kind


# ---------------------------------------------------------------- a member's outbox


def said(effects):
    return [effect.message for effect in effects if isinstance(effect, Send)]


def joined():
    return Joined(welcome=Welcome(generation=1, term=1, heartbeat_s=0.5, results_addr=Endpoint("mem://r")))


def test_entries_of_a_moment_go_together_and_wait_for_a_coordinator():
    outbox = JournalOutbox("f", "frontend")
    assert outbox.handle(LOST, 1.0) == [LogEntry(LOST)], "nobody is there"
    outbox.handle(WAITS, 2.0)
    assert outbox.handle(joined(), 5.0) == [CancelTimer("outside"), SetTimer("send", 5.0 + TOGETHER_S)]
    outbox.handle(GOES_ON, 5.05)
    (message,) = said(outbox.handle(TimerFired("send"), 5.1))
    assert message.first == 1 and [aged.entry for aged in message.entries] == [LOST, WAITS, GOES_ON]
    assert [aged.age_s for aged in message.entries] == pytest.approx([4.1, 3.1, 0.05])
    assert outbox.handle(TimerFired("send"), 5.2) == []


def test_the_next_coordinator_hears_it_all_again():
    outbox = JournalOutbox("f", "frontend")
    outbox.handle(joined(), 0.0)
    outbox.handle(WAITS, 1.0)
    assert said(outbox.handle(TimerFired("send"), 1.1))
    assert outbox.handle(Left(why="new term"), 2.0)[-1] == SetTimer("outside", 2.0 + OUTSIDE_S)
    assert outbox.handle(TimerFired("send"), 2.1) == []
    (line,) = outbox.handle(TimerFired("outside"), 2.5)
    assert line.entry.kind == "cut_off"
    outbox.handle(joined(), 3.0)
    (message,) = said(outbox.handle(TimerFired("send"), 3.1))
    assert message.first == 1 and [aged.entry.kind for aged in message.entries] == ["session_interrupted", "cut_off"]
    assert message.entries[1].age_s == pytest.approx(1.1), "since it left, not since that was noted"


def test_greetings_that_crossed_are_no_news():
    outbox = JournalOutbox("f", "frontend")
    outbox.handle(joined(), 0.0)
    outbox.handle(Left(why="expelled"), 1.0)
    assert CancelTimer("outside") in outbox.handle(joined(), 1.0)


def test_under_pressure_the_oldest_are_forgotten_and_the_numbers_tell():
    outbox = JournalOutbox("f", "frontend")
    for _ in range(KEPT_MAX + 10):
        outbox.handle(WAITS, 0.0)
    outbox.handle(joined(), 1.0)
    message, *_ = said(outbox.handle(TimerFired("send"), 1.1))
    assert message.first == 11 and len(message.entries) == MESSAGE_MAX
    assert said(outbox.handle(TimerFired("send"), 1.2))[0].first == 11 + MESSAGE_MAX


# ---------------------------------------------------------------- the coordinator's keeper

MEMBERS = {"f-1": ("f", "frontend"), "w-1": ("w", "worker"), "p-1": ("p", "parent")}


def keeper():
    made = JournalKeeper(1000.0, MEMBERS.get)
    made.handle(LOST, 50.0)
    return made


def tell(made, peer, first, *entries, now_s=60.0, age_s=0.0):
    aged = tuple(AgedEntry(age_s=age_s, entry=entry) for entry in entries)
    assert made.handle(Received(Address(peer, "journal"), JournalEntries(first=first, entries=aged)), now_s) == []
    return [recorded.entry for recorded in made.ring.all()[1:]]


def test_what_is_said_twice_is_taken_once_and_what_is_missing_is_counted():
    made = keeper()
    assert tell(made, "f-1", 3, WAITS) == [WAITS], "what was before the first word is no loss: it was another's"
    assert tell(made, "f-1", 1, WAITS, WAITS, WAITS, GOES_ON) == [WAITS, GOES_ON]
    entries = tell(made, "f-1", 8, WAITS)
    assert [entry.kind for entry in entries] == ["session_interrupted", "session_resumed", "entries_lost", WAITS.kind]
    assert entries[2].count == 3 and made.lost == 3


def test_an_age_becomes_the_coordinators_time():
    made = keeper()
    tell(made, "f-1", 1, WAITS, age_s=4.0)
    first, second = made.ring.all()
    assert (first.time_s, first.process) == (1000.0, "coordinator")
    assert (second.time_s, second.process) == (1006.0, "f")
    assert first.id == 1_000_000_001 and second.id == first.id + 1


def test_a_member_writes_only_what_its_role_sees():
    made = keeper()
    assert tell(made, "w-1", 1, WAITS, LOST) == [] and tell(made, "f-1", 1, LOST) == [] and made.refused == 3
    assert tell(made, "stranger", 1, WAITS) == []
    for kind in MAY_WRITE["parent"]:
        made = keeper()
        assert tell(made, "p-1", 1, JournalEntry(kind=kind, node="w")) != []


def test_a_question_is_answered_at_once():
    made = keeper()
    tell(made, "f-1", 1, WAITS, GOES_ON)
    asked = JournalRequest(ask=4, after=0, session="chatcmpl-x")
    (effect,) = made.handle(Received(Address("f-1", "asks"), asked), 70.0)
    reply = effect.message
    assert isinstance(reply, JournalReply) and effect.to == Address("f-1", "asks") and not reply.more
    assert [r.entry.kind for r in reply.entries] == ["session_interrupted", "session_resumed"]
    assert (reply.oldest, reply.newest) == (1_000_000_001, 1_000_000_003)


def test_a_loss_knows_whom_it_interrupted_and_for_how_long():
    made = keeper()
    made.handle(attrs.evolve(LOST, node="w2"), 60.0)
    tell(made, "f-1", 1, WAITS, attrs.evolve(WAITS, session=8), now_s=60.1)
    tell(made, "f-1", 3, GOES_ON, attrs.evolve(GOES_ON, session=8, took_s=1.4), now_s=61.1)
    tell(made, "f-1", 5, attrs.evolve(GOES_ON, took_s=0.5), now_s=99.0)
    first, second = made.losses()
    assert (first.node_id, first.interrupted, first.longest_pause_s) == ("w1", 0, None)
    assert (second.node_id, second.why, second.interrupted, second.longest_pause_s) == ("w2", "signal 9", 2, 1.4)
    assert second.time_s == 1010.0


def test_a_loss_that_is_heard_of_last_is_the_cause_all_the_same():
    """The parent of a coordinator may be back after the frontend."""
    made = keeper()
    tell(made, "f-1", 1, WAITS, attrs.evolve(WAITS, session=8), GOES_ON, now_s=61.0)
    died = JournalEntry(kind="child_died", node="coordinator", role="coordinator", reason="signal 9")
    tell(made, "p-1", 1, died, now_s=61.5, age_s=0.6)
    loss = made.losses()[-1]
    assert (loss.node_id, loss.interrupted, loss.longest_pause_s) == ("coordinator", 2, 1.2)


def test_durations_become_histograms():
    made = keeper()
    tell(made, "f-1", 1, GOES_ON, attrs.evolve(GOES_ON, took_s=0.03))
    made.handle(JournalEntry(kind="slice_loaded", took_s=200.0), 60.0)
    samples = {sample.name: sample for sample in made.samples() if sample.kind == "histogram"}
    pause, load = samples["hydra_session_pause_seconds"], samples["hydra_slice_load_seconds"]
    assert pause.count == 2 and pause.value == pytest.approx(1.23)
    assert dict(pause.buckets)[0.05] == 1 and dict(pause.buckets)[1.0] == 1 and dict(pause.buckets)[2.5] == 2
    assert load.count == 1 and load.buckets[-1][1] == 0, "beyond every bound"
