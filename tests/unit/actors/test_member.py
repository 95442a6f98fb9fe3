"""Everybody's way in, and back in."""

import ast
from pathlib import Path

import attrs
import pytest

from hydra.actors.core.facts import Joined, LaneBroken, Left
from hydra.actors.core.identity import Equipment, Identity
from hydra.actors.core.machine import Received, Send, SetTimer, Tell, TimerFired
from hydra.actors.core.membership import GREET_AGAIN_S, Greet, Leave, Member, TurnedAway
from hydra.actors.core.names import REGISTRY
from hydra.actors.membership.registry import Registry
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Address, Epoch
from hydra.protocol.messages.membership import (
    Beacon,
    DeviceOffer,
    Expelled,
    Goodbye,
    Hello,
    HelloRefused,
    SayHello,
    StageProgress,
    Welcome,
)
from hydra.protocol.refusal import Refusal

IDENTITY = Identity(node_id="n", role="frontend", host="h", pid=1, log_lines_lost=lambda: 3)
greeting, beating = IDENTITY.hello, IDENTITY.heartbeat


def member():
    return Member(IDENTITY, ("stage", "other"))


def welcome(generation=5, term=3):
    return Welcome(generation=generation, term=term, heartbeat_s=0.25, results_addr=Endpoint("r"))


def hears(one, message, now_s=10.0):
    return one.handle(Received(REGISTRY, message), now_s)


def inside():
    one = member()
    one.handle(Greet(), 0.0)
    hears(one, welcome())
    return one


def left(effects):
    return [(e.to, e.fact.why) for e in effects if isinstance(e, Tell) and isinstance(e.fact, Left)]


def greets(effects):
    return [e.message.term_seen for e in effects if isinstance(e, Send) and isinstance(e.message, Hello)]


def test_it_greets_until_somebody_answers():
    one = member()
    assert one.handle(Greet(), 0.0) == [Send(REGISTRY, greeting(0)), SetTimer("greet", GREET_AGAIN_S)]
    assert greets(one.handle(TimerFired("greet"), 1.0)) == [0]
    hears(one, welcome())
    assert one.handle(TimerFired("greet"), 2.0) == []


def test_a_welcome_is_shared_and_the_first_beat_goes_out_at_once():
    one = member()
    one.handle(Greet(), 0.0)
    effects = hears(one, welcome(), 10.0)
    assert effects[:2] == [Tell("stage", Joined(welcome=welcome())), Tell("other", Joined(welcome=welcome()))]
    assert effects[2:] == [Send(REGISTRY, beating(5)), SetTimer("beat", 10.25)]
    assert one.handle(TimerFired("beat"), 10.25) == [Send(REGISTRY, beating(5)), SetTimer("beat", 10.5)]


def test_expelled_it_says_so_to_its_siblings_and_greets_again():
    one = inside()
    effects = hears(one, Expelled(generation=5, why="silent"))
    assert left(effects) == [("stage", "expelled"), ("other", "expelled")] and greets(effects) == [3]
    assert one.handle(TimerFired("beat"), 11.0) == [], "no beat without a generation"


def test_the_expulsion_of_a_former_life_is_nothing():
    one = inside()
    assert hears(one, Expelled(generation=4, why="silent")) == [] and one.generation == 5


@pytest.mark.parametrize("word", [SayHello(term=4, generation=5), Beacon(term=4, number=0, counter=1)])
def test_another_term_means_another_coordinator(word):
    one = inside()
    effects = hears(one, word)
    assert left(effects) == [("stage", "new term"), ("other", "new term")] and greets(effects) == [3]


def test_a_beacon_of_our_own_term_is_the_coordinators_pulse():
    assert hears(inside(), Beacon(term=3, number=9, counter=9)) == []


def test_say_hello_in_our_own_term_means_we_were_given_up():
    effects = hears(inside(), SayHello(term=3, generation=5))
    assert left(effects)[0] == ("stage", "expelled") and greets(effects) == [3]


@pytest.mark.parametrize("word", [SayHello(term=4, generation=5), Beacon(term=4, number=0, counter=1)])
def test_while_it_greets_it_needs_no_second_invitation(word):
    one = inside()
    hears(one, Beacon(term=4, number=0, counter=1))
    assert hears(one, word) == []


def test_turned_away_it_waits_as_long_as_it_was_told():
    one = member()
    one.handle(Greet(), 0.0)
    refusal = Refusal(code="unauthorized", message="no", retry_after_s=30.0)
    assert hears(one, HelloRefused(refusal=refusal)) == [TurnedAway(refusal), SetTimer("greet", 40.0)]


def test_it_leaves_with_a_word_if_it_was_ever_in():
    assert inside().handle(Leave("drained"), 1.0) == [Send(REGISTRY, Goodbye(generation=5, why="drained"))]
    assert member().handle(Leave("drained"), 1.0) == []


@pytest.mark.parametrize("greetings", [1, 2, 5])
def test_however_often_it_greeted_a_slow_coordinator_both_come_to_rest(greetings):
    """A coordinator that was stopped reads many greetings at once. Nobody may chase anybody in circles."""
    one, registry = member(), Registry(term=1, results_addr=Endpoint("r"))
    outbox = [Send(REGISTRY, greeting(0)) for _ in range(greetings)]
    for turn in range(20):
        inbox = [
            answer
            for sent in outbox
            for answer in registry.handle(Received(Address("n-1", "member"), sent.message), float(turn))
            if isinstance(answer, Send)
        ]
        outbox = [
            said
            for answer in inbox
            for said in one.handle(Received(REGISTRY, answer.message), float(turn))
            if isinstance(said, Send)
        ]
        if not outbox:
            break
    assert outbox == [], "they still talk"
    (candidate,) = registry.members()
    assert candidate.generation == one.generation


def test_whoever_missed_a_word_leaves_and_greets_again():
    one = inside()
    effects = one.handle(LaneBroken("(coordinator)"), 10.0)
    assert len(left(effects)) == 2 and one.generation is None
    assert any(isinstance(e, Send) and isinstance(e.message, Hello) for e in effects)
    assert one.handle(LaneBroken("(coordinator)"), 10.0) == [], "once is enough"


def test_a_word_about_a_generation_of_yesterday_is_nothing():
    """Two greetings that crossed: the beat of the first is not known any more, and must not cost the second."""
    one = inside()
    hears(one, welcome(generation=6))
    assert hears(one, SayHello(term=3, generation=5)) == [] and one.generation == 6


def test_what_a_worker_brings_is_asked_anew_for_every_greeting_and_every_beat():
    free = iter((30, 20, 10))

    class Device:
        """Whose memory is taken by others while it is asked."""

        def offer(self):
            memory = {"memory_total_bytes": 40, "memory_free_bytes": next(free)}
            return DeviceOffer(device="cpu", name="n", dtypes=("float32",), **memory)

        def held(self):
            return ()

    progress = (StageProgress(route=1, epoch=Epoch(1, 1), accepted=2, sent=1),)
    equipment = Equipment(compute=Device(), stale_dropped=lambda: 4, progress=lambda: progress)
    steps, store = Endpoint("tcp://a"), Endpoint("tcp://b")
    worker = attrs.evolve(IDENTITY, role="worker", pipeline_addr=steps, store_addr=store, equipment=equipment)
    first, second, beat = worker.hello(0), worker.hello(1), worker.heartbeat(5)
    assert [hello.device.memory_free_bytes for hello in (first, second)] == [30, 20] and beat.memory_free_bytes == 10
    assert (second.term_seen, second.pipeline_addr, second.store_addr) == (1, steps, store)
    assert (beat.stale_dropped, beat.progress, beat.log_lines_lost) == (4, progress, 3)
    assert "family" not in repr(worker) and "auth" not in repr(worker), "they are secrets"


def test_greetings_and_beats_are_built_in_one_place():
    """A field that is added to one of them is filled in for every role, in every theatre."""
    builders = {
        path.name
        for path in (Path(__file__).parents[3] / "hydra").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Hello", "Heartbeat")
    }
    assert builders == {"identity.py"}
