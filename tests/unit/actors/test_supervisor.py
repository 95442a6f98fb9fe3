"""Who is started again, who is given up, and who is killed for saying nothing."""

import random
import signal

import pytest

from hydra.actors.machine import Send, SetTimer, TimerFired
from hydra.actors.supervisor import (
    ASLEEP_S,
    DEATHS_MAX,
    SILENCE_MAX_S,
    START_GRACE_S,
    Began,
    ChildBeat,
    ChildGone,
    ChildPlan,
    ChildReady,
    ChildStarted,
    Finish,
    SayReady,
    SignalChild,
    StartChild,
    StopAsked,
    Supervisor,
)

KILL, TERM = signal.SIGKILL, signal.SIGTERM


def supervisor():
    plans = (
        ChildPlan(name="coordinator", role="coordinator", vital=True),
        ChildPlan(name="w0", role="worker", vital=False),
        ChildPlan(name="frontend", role="frontend", vital=True),
    )
    made = Supervisor(plans, random.Random(1))
    assert made.handle(Began(), 0.0) == [StartChild("coordinator"), StartChild("w0"), StartChild("frontend")]
    for pid, plan in enumerate(plans, 10):
        made.handle(ChildStarted(plan.name, pid), 0.0)
        made.handle(ChildBeat(plan.name), 0.0)
    return made


def looks_at(effects):
    """When the child's silence is judged next."""
    return next(effect.at_s for effect in effects if isinstance(effect, SetTimer) and effect.key[0] == "silence")


def of_kind(effects, kind):
    return [effect for effect in effects if isinstance(effect, kind)]


def test_all_is_said_to_be_ready_once_and_not_by_a_worker():
    made = supervisor()
    assert made.handle(ChildReady("w0"), 1.0) == []
    assert made.handle(ChildReady("frontend"), 1.0) == [SayReady()]
    assert made.handle(ChildReady("frontend"), 2.0) == []


def test_a_silent_child_is_killed():
    made = supervisor()
    made.handle(ChildBeat("w0"), 4.0)
    again = looks_at(made.handle(TimerFired(("silence", "w0")), SILENCE_MAX_S))
    assert again == 4.0 + SILENCE_MAX_S
    assert made.handle(TimerFired(("silence", "w0")), again) == [SignalChild("w0", 11, KILL)]


def test_a_child_that_has_not_spoken_yet_has_longer():
    made = supervisor()
    made.handle(ChildGone("w0", 11, -9), 1.0)
    first = looks_at(made.handle(ChildStarted("w0", 20), 2.0))
    assert looks_at(made.handle(TimerFired(("silence", "w0")), first)) == 2.0 + START_GRACE_S


def test_a_parent_that_was_stopped_itself_does_not_blame_its_child():
    made = supervisor()
    woken = SILENCE_MAX_S + ASLEEP_S + 0.5
    again = looks_at(made.handle(TimerFired(("silence", "w0")), woken))
    assert again == woken + SILENCE_MAX_S, "it has its time from now"
    assert made.handle(TimerFired(("silence", "w0")), again) == [SignalChild("w0", 11, KILL)], "and no more than that"


def test_a_death_is_told_at_once_and_mended_after_a_while():
    made = supervisor()
    effects = made.handle(ChildGone("w0", 11, -9), 1.0)
    [told] = of_kind(effects, Send)
    assert (told.message.node_id, told.message.pid, told.message.how) == ("w0", 11, "signal 9")
    [start] = [timer for timer in of_kind(effects, SetTimer) if timer.key == ("start", "w0")]
    assert made.handle(TimerFired(start.key), start.at_s) == [StartChild("w0")]


@pytest.mark.parametrize(("name", "closes"), [("w0", False), ("coordinator", True)])
def test_one_death_too_many(name, closes):
    made = supervisor()
    pid = {"w0": 11, "coordinator": 10}[name]
    for death in range(DEATHS_MAX + 1):
        effects = made.handle(ChildGone(name, pid + 100 * death, -9), 1.0 + death)
        made.handle(ChildStarted(name, pid + 100 * (death + 1)), 1.5 + death)
    assert not [timer for timer in of_kind(effects, SetTimer) if timer.key == ("start", name)], "it is given up"
    assert bool(of_kind(effects, SignalChild)) == closes, "the house cannot stand without a vital child"


def test_the_first_ctrl_c_asks_one_after_the_other_and_the_second_asks_nobody():
    made = supervisor()
    assert of_kind(made.handle(StopAsked(), 1.0), SignalChild) == [SignalChild("frontend", 12, TERM)]
    assert of_kind(made.handle(ChildGone("frontend", 12, 0), 2.0), SignalChild) == [SignalChild("w0", 11, TERM)]
    assert made.handle(StopAsked(), 2.5) == [SignalChild("coordinator", 10, KILL), SignalChild("w0", 11, KILL)]
    made.handle(ChildGone("w0", 11, -9), 2.6)
    [finish] = of_kind(made.handle(ChildGone("coordinator", 10, -9), 2.7), Finish)
    assert finish.exit_code == 0
