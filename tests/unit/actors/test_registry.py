"""Who is alive, by the Registry's word: generations, leases, and whose fault a late step is."""

import attrs
import pytest

from hydra.actors.core.facts import (
    FrontendJoined,
    FrontendLost,
    LaneBroken,
    NodeJoined,
    NodeLost,
    NodeSuspect,
    StepOverdue,
    StepVanished,
    TermRaised,
)
from hydra.actors.core.machine import Received, Send, SetTimer, Tell, TimerFired
from hydra.actors.core.names import MEMBER
from hydra.actors.membership.registry import TERM_JUMP_MAX, Broadcast, NotLetIn, Opened, Registry
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import TERM_MAX, Address, Epoch
from hydra.protocol.messages.membership import (
    PROTOCOL_VERSION,
    ChildExited,
    DeviceOffer,
    Expelled,
    Goodbye,
    Heartbeat,
    HeartbeatSeen,
    Hello,
    HelloRefused,
    KillWorker,
    SayHello,
    StageProgress,
    Welcome,
)
from hydra.protocol.settings.cluster import ClusterSettings

OFFER = DeviceOffer(
    device="cpu", name="a machine", dtypes=("float32",), memory_total_bytes=8 * 10**9, memory_free_bytes=7 * 10**9
)
PARENT = {"role": "parent", "device": None, "pipeline_addr": None}
EPOCH = Epoch(1, 1)
LATE = StepOverdue(route=1, epoch=EPOCH, step=10, nodes=("a", "b", "c"))


def hello(node, **changes):
    made = Hello(
        node_id=node,
        role="worker",
        version=PROTOCOL_VERSION,
        auth="",
        host="h",
        pid=100,
        term_seen=0,
        device=OFFER,
        pipeline_addr=Endpoint(f"tcp://{node}"),
    )
    return attrs.evolve(made, **changes)


class Room:
    """A registry and the hour."""

    def __init__(self, **settings):
        self.registry = Registry(term=1, results_addr=Endpoint("tcp://r"), **settings)
        self.now_s = 0.0

    def hears(self, peer, message):
        return self.registry.handle(Received(Address(peer, "member"), message), self.now_s)

    def joins(self, node, **changes):
        effects = self.hears(f"{node}-1", hello(node, **changes))
        return mail(effects, Welcome)[0].generation

    def beats(self, node, generation, *, accepted=0, sent=0, route=1, epoch=EPOCH):
        progress = (StageProgress(route=route, epoch=epoch, accepted=accepted, sent=sent),)
        return self.hears(
            f"{node}-1",
            Heartbeat(generation=generation, memory_free_bytes=5, stale_dropped=2, progress=progress),
        )

    def sweep(self, now_s):
        self.now_s = now_s
        return self.registry.handle(TimerFired("sweep"), now_s)

    def states(self):
        return {member.hello.node_id: member.state for member in self.registry.members()}


def mail(effects, kind, peer=None):
    return [
        e.message
        for e in effects
        if isinstance(e, Send) and isinstance(e.message, kind) and (peer is None or e.to.peer == peer)
    ]


def facts(effects, kind):
    return [e.fact for e in effects if isinstance(e, Tell) and isinstance(e.fact, kind)]


# ---------------------------------------------------------------- greeting


def test_a_worker_is_welcomed_and_the_planner_hears_of_it():
    room = Room()
    effects = room.hears("a-1", hello("a", store_addr=Endpoint("tcp://store")))
    (welcome,) = mail(effects, Welcome, "a-1")
    assert (welcome.term, welcome.results_addr, welcome.heartbeat_s) == (1, Endpoint("tcp://r"), 0.5)
    (joined,) = facts(effects, NodeJoined)
    assert (joined.node, joined.peer, joined.offer, joined.pipeline_addr) == ("a", "a-1", OFFER, Endpoint("tcp://a"))
    assert joined.store_addr == Endpoint("tcp://store")
    assert joined.generation == welcome.generation and room.states() == {"a": "ready"}


def test_a_frontend_is_made_known_and_missed():
    room = Room()
    effects = room.hears("f-1", hello("f", role="frontend", device=None, pipeline_addr=None))
    assert facts(effects, FrontendJoined) == [FrontendJoined(peer="f-1")]
    lost = room.sweep(6.0)
    assert [e.to for e in lost if isinstance(e, Tell)] == ["planner", "broker"]
    assert facts(lost, FrontendLost) == [FrontendLost(peer="f-1")] * 2


def test_generations_only_grow():
    room = Room()
    granted = [room.joins("a"), room.joins("b"), room.joins("a")]
    assert granted == sorted(set(granted))
    next_life = Registry(term=2, results_addr=Endpoint("tcp://r"))
    welcomed, *_ = next_life.handle(Received(Address("a-1", "member"), hello("a")), 0.0)
    assert welcomed.message.generation > max(granted)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version": PROTOCOL_VERSION + 1}, "version_mismatch"),
        ({"auth": "guess"}, "unauthorized"),
        ({"auth": ""}, "unauthorized"),
        ({"auth": "sesame", "device": None}, "invalid_value"),
        ({"auth": "sesame", "pipeline_addr": None}, "invalid_value"),
    ],
)
def test_who_is_turned_away(changes, code):
    room = Room(cluster=ClusterSettings(join_token="sesame"))
    effect, noted = room.hears("a-1", hello("a", **changes))
    assert effect.message.refusal.code == code and effect.to == Address("a-1", "member")
    assert noted == NotLetIn("a", hello("a").host, effect.message.refusal), "a line at this end too"
    assert "sesame" not in effect.message.refusal.message and room.states() == {}


def test_a_worker_from_elsewhere_that_advertises_loopback_is_told_what_to_do():
    room = Room(host_of=lambda peer: "10.0.0.7" if peer == "far-1" else "")
    effect, _ = room.hears("far-1", hello("far", pipeline_addr=Endpoint("tcp://127.0.0.1:6000")))
    refusal = effect.message.refusal
    assert refusal.code == "unreachable" and room.states() == {}
    assert all(word in refusal.message for word in ("10.0.0.7", "tcp://127.0.0.1:6000", "--bind", "--advertise"))
    assert room.joins("near", pipeline_addr=Endpoint("tcp://127.0.0.1:6000")), "here it is where it says"
    assert Room(host_of=lambda peer: "10.0.0.7").joins("far", pipeline_addr=Endpoint("tcp://10.0.0.7:6000"))


def test_the_join_token_opens():
    assert Room(cluster=ClusterSettings(join_token="sesame")).joins("a", auth="sesame")


def test_a_name_is_refused_while_its_owner_lives():
    room = Room()
    generation = room.joins("a")
    room.now_s = 0.9
    (refused,) = mail(room.hears("a-2", hello("a", pid=200)), HelloRefused, "a-2")
    assert "pid 100" in refused.refusal.message and refused.refusal.retry_after_s
    assert mail(room.beats("a", generation), HeartbeatSeen, "a-1")


def test_a_restarted_process_takes_its_name_back_once_the_old_one_is_silent():
    room = Room()
    former = room.joins("a")
    room.now_s = 1.1
    effects = room.hears("a-2", hello("a", pid=200))
    assert mail(effects, Expelled, "a-1")[0].generation == former
    lost, joined = facts(effects, NodeLost)[0], facts(effects, NodeJoined)[0]
    assert lost.generation == former and joined.peer == "a-2" and joined.generation > former
    kinds = [type(e.fact) for e in effects if isinstance(e, Tell)]
    assert kinds == [NodeLost, NodeJoined]


def test_who_greets_again_gets_a_new_generation_and_is_not_expelled_from_the_old():
    room = Room()
    former = room.joins("a")
    effects = room.hears("a-1", hello("a"))
    assert facts(effects, NodeLost)[0].generation == former and mail(effects, Welcome)[0].generation > former
    assert mail(effects, Expelled) == [], "an expulsion makes it greet again, and so on for ever"


def test_a_hello_that_has_seen_a_later_term_raises_ours():
    room = Room()
    effects = room.hears("a-1", hello("a", term_seen=7))
    assert effects[0] == Tell("planner", TermRaised(term=8)) and mail(effects, Welcome)[0].term == 8
    effects = room.hears("a-1", hello("a", term_seen=8))
    assert not facts(effects, TermRaised), "it has the term from us"
    assert facts(room.hears("b-1", hello("b", term_seen=8)), TermRaised), "a stranger has it from somebody else"


# ---------------------------------------------------------------- leases


def test_three_missed_beats_make_a_suspect_and_a_beat_clears_it():
    room = Room()
    generation = room.joins("a")
    assert not facts(room.sweep(1.5), NodeSuspect)
    assert facts(room.sweep(1.6), NodeSuspect) == [NodeSuspect(node="a", suspect=True)]
    assert not facts(room.sweep(2.0), NodeSuspect), "once is enough"
    assert facts(room.beats("a", generation), NodeSuspect) == [NodeSuspect(node="a", suspect=False)]
    assert room.states() == {"a": "ready"}


def test_five_silent_seconds_are_a_loss():
    room = Room()
    generation = room.joins("a")
    assert not facts(room.sweep(5.0), NodeLost)
    effects = room.sweep(5.1)
    assert facts(effects, NodeLost)[0].generation == generation
    assert mail(effects, Expelled, "a-1")[0].generation == generation and room.states() == {}


def test_a_lost_generation_stays_lost():
    room = Room()
    generation = room.joins("a")
    room.sweep(6.0)
    assert room.beats("a", generation) == [Send(Address("a-1", "member"), SayHello(term=1, generation=generation))]
    assert room.states() == {}


def test_a_beat_of_a_former_generation_is_answered_with_say_hello():
    room = Room()
    former = room.joins("a")
    room.joins("a")
    assert mail(room.beats("a", former), SayHello) and mail(room.beats("nobody", 1), SayHello)


def test_beats_keep_the_lease_and_the_books():
    room = Room()
    generation = room.joins("a")
    for i in range(1, 20):
        room.sweep(i * 0.5)
        assert room.beats("a", generation) == [Send(Address("a-1", MEMBER), HeartbeatSeen(generation=generation))]
    assert room.states() == {"a": "ready"} and room.registry.members()[0].memory_free_bytes == 5
    assert room.registry.total_stale_dropped() == 2
    room.sweep(20.0)
    assert room.registry.total_stale_dropped() == 2, "what the lost one dropped still counts"


def test_log_lines_that_could_not_be_written_are_counted_by_role_also_of_those_who_are_gone():
    room = Room()
    for node, role, lines in [("a", "worker", 2), ("f", "frontend", 0), ("p", "parent", 3), ("q", "parent", 4)]:
        generation = room.joins(node, role=role)
        beat = Heartbeat(generation=generation, memory_free_bytes=0, stale_dropped=0, log_lines_lost=lines)
        room.hears(f"{node}-1", beat)
    room.sweep(20.0)
    assert not room.registry.members() and room.registry.log_lines_lost() == {"parent": 7, "worker": 2}


@pytest.mark.parametrize(("pid", "lost"), [(100, True), (101, False)])
def test_a_parents_word_counts_for_the_process_it_saw(pid, lost):
    room = Room()
    room.joins("a", family="secret")
    room.joins("p", **PARENT, family="secret")
    effects = room.hears("p-1", ChildExited(node_id="a", pid=pid, how="signal 9"))
    assert bool(facts(effects, NodeLost)) == lost
    if lost:
        assert "signal 9" in facts(effects, NodeLost)[0].why


@pytest.mark.parametrize(
    ("child", "speaker"),
    [
        ("secret", {**PARENT, "family": "another"}),
        ("secret", PARENT),
        ("", PARENT),
        ("secret", {"family": "secret"}),
        ("secret", None),
    ],
    ids=["another parent", "a parent without a secret", "nobody has one", "a sibling", "a stranger"],
)
def test_nobody_else_may_say_that_a_process_is_gone(child, speaker):
    room = Room()
    room.joins("a", family=child)
    if speaker is not None:
        room.joins("p", **speaker)
    assert room.hears("p-1", ChildExited(node_id="a", pid=100, how="signal 9")) == []


def test_a_process_is_killed_by_its_own_parent_alone():
    room = Room()
    room.joins("p", **PARENT, family="p")
    room.joins("q", **PARENT, family="q")
    generation = room.joins("a", family="q")
    room.beats("a", generation, accepted=10, sent=9)
    effects = room.registry.handle(attrs.evolve(LATE, nodes=("a",)), 0.1)
    assert mail(effects, KillWorker, "q-1") and not mail(effects, KillWorker, "p-1")


def test_one_process_is_one_member():
    room = Room()
    room.joins("a")
    for other in (hello("b"), hello("a", role="frontend", device=None, pipeline_addr=None)):
        (refused,) = mail(room.hears("a-1", other), HelloRefused)
        assert refused.refusal.code == "invalid_value" and room.states() == {"a": "ready"}


def test_what_a_peer_is():
    room = Room()
    room.joins("a")
    room.joins("p", **PARENT)
    speakers = [room.registry.speaker_of(peer) for peer in ("a-1", "p-1", "a-0", "coordinator", "(probe)")]
    assert speakers == ["worker", "parent", "stranger", "impostor", "impostor"]


def test_no_greeting_raises_the_term_beyond_reason_and_all_of_them_together_neither():
    room = Room()
    for term in (1 + TERM_JUMP_MAX, TERM_MAX):
        effects = room.hears("x-1", hello("x", term_seen=term))
        assert mail(effects, HelloRefused)[0].refusal.code == "invalid_value" and facts(effects, TermRaised) == []
    room.joins("y", term_seen=TERM_JUMP_MAX)
    assert room.registry.term == 1 + TERM_JUMP_MAX
    assert mail(room.hears("z-1", hello("z", term_seen=1 + TERM_JUMP_MAX)), HelloRefused), "not a step further"
    assert mail(room.hears("y-1", hello("y", term_seen=1 + TERM_JUMP_MAX)), Welcome), "who has it from us is welcome"
    room.joins("w")


@pytest.mark.parametrize(("offset", "lost"), [(0, True), (-1, False)])
def test_goodbye_counts_for_its_own_generation(offset, lost):
    room = Room()
    generation = room.joins("a")
    effects = room.hears("a-1", Goodbye(generation=generation + offset, why="drained"))
    assert bool(facts(effects, NodeLost)) == lost


def test_the_beacon_counts_itself_and_every_change():
    room = Room()
    first = room.registry.handle(Opened(), 0.0)
    assert first[1] == SetTimer("sweep", 0.5) and isinstance(first[0], Broadcast)
    room.joins("a")
    second = room.sweep(0.5)[0].beacon
    assert (second.term, second.counter) == (1, first[0].beacon.counter + 1)
    assert second.number == first[0].beacon.number + 1


# ---------------------------------------------------------------- blame


def blame(told, *, silent=()):
    """Three stages in a row; `told` is what each last said: (accepted, sent)."""
    room = Room()
    room.joins("p", **PARENT, family="p")
    generations = {node: room.joins(node, family="p") for node in "abc"}
    for node, (accepted, sent) in told.items():
        room.beats(node, generations[node], accepted=accepted, sent=sent)
    room.now_s = 3.0
    for node in set("abc") - set(silent):
        accepted, sent = told.get(node, (0, 0))
        room.beats(node, generations[node], accepted=accepted, sent=sent)
    return room.registry.handle(LATE, room.now_s)


@pytest.mark.parametrize(
    ("told", "silent", "culprit"),
    [
        ({"a": (10, 9), "b": (9, 9), "c": (9, 9)}, "", "a"),
        ({"a": (12, 12), "b": (10, 9), "c": (9, 9)}, "", "b"),
        ({"a": (12, 12), "b": (12, 11), "c": (10, 9)}, "", "c"),  # b has sent it: that it holds a later one is no guilt
        ({"a": (10, 10), "b": (9, 9), "c": (9, 9)}, "b", "b"),  # stopped before it took the step
        ({"a": (9, 9), "b": (9, 9), "c": (9, 9)}, "a", "a"),
        ({"a": (12, 12), "b": (11, 11), "c": (11, 11)}, "", None),  # the result was lost on the way back
        ({"a": (10, 10), "b": (9, 9), "c": (9, 9)}, "", None),  # lost between a and b
        ({"a": (10, 10), "b": (9, 9), "c": (8, 7)}, "", None),  # c is not asked for what b never had
        ({"a": (9, 8), "b": (8, 8), "c": (8, 8)}, "", None),  # an old beat: a step before the late one is no guilt
    ],
)
def test_whose_fault_a_late_step_is(told, silent, culprit):
    effects = blame(told, silent=silent)
    lost = facts(effects, NodeLost)
    if culprit is None:
        assert lost == [] and mail(effects, KillWorker) == []
        assert [(v.route, v.epoch) for v in facts(effects, StepVanished)] == [(1, EPOCH)]
    else:
        assert [fact.node for fact in lost] == [culprit] and facts(effects, StepVanished) == []
        kills = mail(effects, KillWorker, "p-1")
        assert [kill.node_id for kill in kills] == (
            [] if culprit == silent else [culprit]
        )  # silence is its parent's affair
        assert mail(effects, Expelled, f"{culprit}-1")


def test_progress_on_another_epoch_proves_nothing():
    room = Room()
    generations = {node: room.joins(node) for node in "abc"}
    room.beats("a", generations["a"], accepted=12, sent=11, epoch=Epoch(1, 2))
    effects = room.registry.handle(LATE, 0.1)
    assert facts(effects, NodeLost) == [] and facts(effects, StepVanished)


def test_a_loss_explains_a_late_step():
    room = Room()
    for name in ("a", "b", "c"):
        room.joins(name)
    assert room.registry.handle(LATE, 0.1)[0].fact.why == "step 10 is overdue and no stage holds it"
    room = Room()
    room.joins("b")
    assert room.registry.handle(LATE, 0.1) == [], "a is lost already, and the planner knows"


def test_whose_words_were_lost_is_put_out_and_may_greet_again():
    room = Room()
    generation = room.joins("a")
    effects = room.registry.handle(LaneBroken("a-1"), 1.0)
    assert mail(effects, Expelled, "a-1")[0].generation == generation and facts(effects, NodeLost)
    assert room.registry.handle(LaneBroken("a-1"), 1.0) == [], "of a stranger nothing was promised"
    assert room.joins("a") > generation
