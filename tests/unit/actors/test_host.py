"""The shell around the machines: order of mail, timers, and nothing else. Under virtual time."""

import attrs
import pytest
import trio

from hydra.actors.core.host import LATE_S, MAIL_FIRST_S, ActorHost
from hydra.actors.core.machine import CancelTimer, Received, Send, SetTimer, Tell, TimerFired
from hydra.protocol.ids import Address
from hydra.protocol.messages.plans import RouteBroken


@attrs.define
class Scripted:
    """Answers each event with what its script says, and keeps a diary."""

    script: dict = attrs.field(factory=dict)
    diary: list = attrs.field(factory=list)

    def handle(self, event, now_s):
        self.diary.append(event)
        return self.script.pop(event, [])


def host(**machines):
    carried, performed = [], []
    made = ActorHost("here", lambda *mail: carried.append(mail))
    for name, machine in machines.items():
        made.add(name, machine, performed.append)
    return made, carried, performed


def word(why):
    return RouteBroken(route=1, epoch=None, why=why, side="in")


@pytest.fixture
async def hours(nursery):
    """Stands up a house's timer task; `await hours(house)`."""

    async def stand(made):
        nursery.start_soon(made.keep_timers)
        await trio.testing.wait_all_tasks_blocked()

    return stand


async def test_one_event_is_handled_whole_before_the_next():
    shared = []
    a = Scripted({"go": [Tell("b", 1), Tell("a", 2), Tell("b", 3)], 2: [Tell("b", 4)]}, shared)
    b = Scripted({1: [Tell("a", 5)]}, shared)
    made, _, _ = host(a=a, b=b)
    made.post("a", "go")
    assert shared == ["go", 1, 2, 3, 5, 4]


async def test_mail_for_a_sibling_stays_in_the_house_and_names_its_sender():
    b = Scripted()
    away = Address("there", "x")
    made, carried, _ = host(a=Scripted({"go": [Send(Address("here", "b"), word("w")), Send(away, word("v"))]}), b=b)
    made.post("a", "go")
    assert b.diary == [Received(Address("here", "a"), word("w"))]
    assert carried == [(away, "a", word("v"))]


async def test_what_a_machine_asks_of_its_process_is_performed():
    made, _, performed = host(a=Scripted({"go": ["load", "drop"]}))
    made.post("a", "go")
    assert performed == ["load", "drop"]


async def test_posting_while_draining_queues_behind_what_is_there():
    a = Scripted({"go": ["call back", Tell("a", 1)]})
    made = ActorHost("here", lambda *mail: None)
    made.add("a", a, lambda effect: made.post("a", "called"))
    made.post("a", "go")
    assert a.diary == ["go", "called", 1]


async def test_mail_for_nobody_is_dropped():
    a = Scripted({"go": [Tell("ghost", 1), Tell("a", 2)]})
    made, _, _ = host(a=a)
    made.post("a", "go")
    assert a.diary == ["go", 2] and made.has("a") and not made.has("ghost")


async def test_a_name_is_given_once():
    made, _, _ = host(a=Scripted())
    with pytest.raises(AssertionError, match="two actors"):
        made.add("a", Scripted(), print)


async def test_a_fault_leaves_post_and_the_house_can_be_posted_to_again():
    class Faulty(Scripted):
        def handle(self, event, now_s):
            if event == "bad":
                raise ZeroDivisionError
            return super().handle(event, now_s)

    a = Faulty()
    made, _, _ = host(a=a)
    with pytest.raises(ZeroDivisionError):
        made.post("a", "bad")
    made.post("a", "good")
    assert a.diary == ["good"]


@attrs.define
class Clockwork:
    """Sets timers when told, and notes when they fire."""

    fired: list = attrs.field(factory=list)
    then: dict = attrs.field(factory=dict)

    def handle(self, event, now_s):
        if isinstance(event, TimerFired):
            self.fired.append((event.key, now_s))
            return self.then.pop(event.key, [])
        return event


async def test_timers_fire_in_the_order_of_their_hours(hours, autojump_clock):
    clock = Clockwork()
    made, _, _ = host(a=clock)
    await hours(made)
    start_s = trio.current_time()
    made.post("a", [SetTimer("late", start_s + 5), SetTimer("soon", start_s + 1), SetTimer("mid", start_s + 3)])
    await trio.sleep(10)
    assert [(key, at - start_s) for key, at in clock.fired] == [("soon", 1), ("mid", 3), ("late", 5)]


async def test_a_timer_of_the_same_key_is_replaced(hours, autojump_clock):
    clock = Clockwork()
    made, _, _ = host(a=clock)
    await hours(made)
    start_s = trio.current_time()
    made.post("a", [SetTimer("x", start_s + 1), SetTimer("x", start_s + 4), SetTimer("y", start_s + 6)])
    made.post("a", [SetTimer("y", start_s + 2)])
    await trio.sleep(10)
    assert [(key, at - start_s) for key, at in clock.fired] == [("y", 2), ("x", 4)]


async def test_a_cancelled_timer_never_fires_and_may_be_set_again(hours, autojump_clock):
    clock = Clockwork()
    made, _, _ = host(a=clock)
    await hours(made)
    start_s = trio.current_time()
    made.post("a", [SetTimer("x", start_s + 1), SetTimer("z", start_s + 1), CancelTimer("x"), CancelTimer("never")])
    await trio.sleep(2)
    made.post("a", [SetTimer("x", start_s + 3)])
    await trio.sleep(5)
    assert [(key, at - start_s) for key, at in clock.fired] == [("z", 1), ("x", 3)]


async def test_a_timer_may_set_itself_again_and_one_that_is_due_fires_at_once(hours, autojump_clock):
    clock = Clockwork()
    made, _, _ = host(a=clock)
    await hours(made)
    start_s = trio.current_time()
    clock.then = {"beat": [SetTimer("beat", start_s + 2), SetTimer("due", start_s)]}
    made.post("a", [SetTimer("beat", start_s + 1)])
    await trio.sleep(5)
    assert [(key, at - start_s) for key, at in clock.fired] == [("beat", 1), ("due", 1), ("beat", 2)]


async def test_equal_keys_of_two_actors_are_two_timers(hours, autojump_clock):
    a, b = Clockwork(), Clockwork()
    made, _, _ = host(a=a, b=b)
    await hours(made)
    start_s = trio.current_time()
    made.post("a", [SetTimer("x", start_s + 1)])
    made.post("b", [SetTimer("x", start_s + 2)])
    made.post("b", [CancelTimer("x")])
    await trio.sleep(5)
    assert len(a.fired) == 1 and b.fired == []


async def test_after_a_standstill_the_mail_is_read_before_the_timers_fire(hours, autojump_clock):
    """The process stood still: what its peers said meanwhile is in the sockets, some turns of the loop away."""
    clock = Clockwork()
    made, _, _ = host(a=clock)
    await hours(made)
    start_s = trio.current_time()
    made.post("a", [SetTimer("lease", start_s + 1), SetTimer("young", start_s + 4.9)])
    autojump_clock.jump(5)
    await trio.sleep(MAIL_FIRST_S / 2)
    assert clock.fired == [], "they wait for the mail"
    made.post("a", [CancelTimer("lease")])
    await trio.sleep(1)
    assert [(key, at - start_s) for key, at in clock.fired] == [("young", pytest.approx(5 + MAIL_FIRST_S))]


async def test_a_timer_that_is_a_little_late_fires_at_once(hours, autojump_clock):
    clock = Clockwork()
    made, _, _ = host(a=clock)
    await hours(made)
    start_s = trio.current_time()
    made.post("a", [SetTimer("x", start_s + 1)])
    autojump_clock.jump(1 + LATE_S)
    await trio.sleep(1)
    assert [(key, at - start_s) for key, at in clock.fired] == [("x", 1 + LATE_S)]


async def test_what_is_observed_is_written_down_before_anything_comes_of_it():
    """And nothing is observed of the journal itself."""
    order = []

    class Journal:
        def handle(self, event, now_s):
            order.append(("journal", event))
            return []

    made = ActorHost("here", print, lambda actor, event, effects, now_s: [f"{actor} {event}"] if actor == "a" else [])
    made.add("journal", Journal(), order.append)
    made.add("a", Scripted({"go": ["effect", Tell("b", "fact")]}), order.append)
    made.add("b", Scripted({}, order), order.append)
    made.post("a", "go")
    assert order == [("journal", "a go"), "effect", "fact"]
