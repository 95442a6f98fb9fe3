"""Who is started again, who is given up, and who is killed for saying nothing."""

import random
import signal

import pytest

from hydra.actors.core.machine import Send, SetTimer, TimerFired
from hydra.actors.families.death_book import LIVED_WELL_S, PAUSE_FIRST_S
from hydra.actors.families.supervisor import (
    ASLEEP_S,
    CHILD_SILENCE_MAX_S,
    DEATHS_UNSEEN_MAX,
    PAUSE_MOST_S,
    START_GRACE_S,
    Began,
    ChildBeat,
    ChildGone,
    ChildNotStarted,
    ChildPlan,
    ChildReady,
    ChildStarted,
    ChildUp,
    FinishParent,
    SayReady,
    SignalChild,
    StartChild,
    StopAsked,
    Supervisor,
    TellDeath,
    TellGivenUp,
)
from hydra.protocol.messages.membership import ChildExited

KILL, TERM = signal.SIGKILL, signal.SIGTERM


def supervisor(**settings):
    plans = (
        ChildPlan(name="coordinator", role="coordinator", vital=True),
        ChildPlan(name="w0", role="worker", vital=False),
        ChildPlan(name="w1", role="worker", vital=False),
        ChildPlan(name="frontend", role="frontend", vital=True),
    )
    made = Supervisor(plans, random.Random(1), **settings)
    assert made.handle(Began(), 0.0) == [StartChild(plan.name) for plan in plans]
    for pid, plan in enumerate(plans, 10):
        made.handle(ChildStarted(plan.name, pid), 0.0)
        made.handle(ChildBeat(plan.name), 0.0)
    return made


PIDS = {"coordinator": 10, "w0": 11, "w1": 12, "frontend": 13}


class House:
    """A supervisor whose children start at once when it says so, and the hour."""

    def __init__(self, made):
        self.made, self.now_s, self.pids, self.effects = made, 0.0, dict(PIDS), []

    def tell(self, event):
        self.effects = self.made.handle(event, self.now_s)
        return self.effects

    def dies(self, name, returncode=-9, *, after_s=0.0, up=False):
        """Once; it comes `up` before it does. Returns the effects; whoever is to be started again has been."""
        if up:
            self.tell(ChildUp(name))
        self.now_s += after_s
        effects = self.tell(ChildGone(name, self.pids[name], returncode))
        for timer in of_kind(effects, SetTimer):
            if timer.key == ("start", name):
                self.now_s = timer.at_s
                assert self.tell(TimerFired(timer.key)) == [StartChild(name)]
                self.pids[name] += 100
                self.tell(ChildStarted(name, self.pids[name]))
        return effects

    def end(self):
        """Everybody who is asked to end does; returns how it ended."""
        for _ in range(10):
            finish = of_kind(self.effects, FinishParent)
            if finish:
                return finish[0]
            asked = of_kind(self.effects, SignalChild)
            self.effects = []
            for signal_ in asked:
                self.effects += self.made.handle(ChildGone(signal_.name, signal_.pid, -signal_.number), self.now_s)
        raise AssertionError("it does not end")


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
    again = looks_at(made.handle(TimerFired(("silence", "w0")), CHILD_SILENCE_MAX_S))
    assert again == 4.0 + CHILD_SILENCE_MAX_S
    assert made.handle(TimerFired(("silence", "w0")), again) == [SignalChild("w0", 11, KILL)]


def slow_starter(made):
    """When `w0`, started anew at 2.0, is looked at for the first time."""
    made.handle(ChildGone("w0", 11, -9), 1.0)
    return looks_at(made.handle(ChildStarted("w0", 20), 2.0))


def test_a_child_that_has_not_spoken_yet_has_longer():
    made = supervisor()
    at_s = slow_starter(made)
    while at_s < 2.0 + START_GRACE_S:
        at_s = looks_at(made.handle(TimerFired(("silence", "w0")), at_s))
    assert at_s == 2.0 + START_GRACE_S
    assert made.handle(TimerFired(("silence", "w0")), at_s) == [SignalChild("w0", 20, KILL)]


def test_a_child_that_was_slow_to_start_and_then_falls_silent_is_killed_as_soon_as_any_other():
    made = supervisor()
    at_s = looks_at(made.handle(TimerFired(("silence", "w0")), slow_starter(made)))
    made.handle(ChildBeat("w0"), 15.0)
    killed: list[object] = []
    while not killed:
        effects = made.handle(TimerFired(("silence", "w0")), at_s)
        killed = of_kind(effects, SignalChild)
        at_s = at_s if killed else looks_at(effects)
    assert at_s == 15.0 + CHILD_SILENCE_MAX_S


def test_a_parent_that_was_stopped_itself_does_not_blame_its_child():
    made = supervisor()
    woken = CHILD_SILENCE_MAX_S + ASLEEP_S + 0.5
    again = looks_at(made.handle(TimerFired(("silence", "w0")), woken))
    assert again == woken + CHILD_SILENCE_MAX_S, "it has its time from now"
    assert made.handle(TimerFired(("silence", "w0")), again) == [SignalChild("w0", 11, KILL)], "and no more than that"


def test_a_death_is_told_at_once_and_mended_after_a_while():
    made = supervisor()
    effects = made.handle(ChildGone("w0", 11, -9), 1.0)
    [told] = of_kind(effects, Send)
    assert (told.message.node_id, told.message.pid, told.message.how) == ("w0", 11, "signal 9")
    [start] = [timer for timer in of_kind(effects, SetTimer) if timer.key == ("start", "w0")]
    assert made.handle(TimerFired(start.key), start.at_s) == [StartChild("w0")]


# ---------------------------------------------------------------- another try


def pauses(host, name, times, **how):
    return [of_kind(host.dies(name, **how), TellDeath)[0].next_start_s for _ in range(times)]


@pytest.mark.parametrize("name", ["coordinator", "w0", "frontend"])
def test_who_has_served_is_started_again_without_end(name):
    """After pauses that grow up to a limit, and with a word each time."""
    host = House(supervisor())
    host.tell(ChildUp(name))
    told = pauses(host, name, 30)
    most_s = PAUSE_MOST_S[host.made._children[name].plan.role]
    ceilings = [min(most_s, PAUSE_FIRST_S * 2**n) for n in range(30)]
    assert all(ceiling / 2 <= pause <= ceiling for pause, ceiling in zip(told, ceilings, strict=True))
    assert not of_kind(host.effects, FinishParent)


@pytest.mark.parametrize(("lived_s", "grows"), [(LIVED_WELL_S - 1, True), (LIVED_WELL_S, False)])
def test_a_good_life_makes_up_for_a_death(lived_s, grows):
    host = House(supervisor())
    told = pauses(host, "w0", 8, up=True, after_s=lived_s)
    assert (told[-1] > 8 * PAUSE_FIRST_S) == grows and (max(told) <= PAUSE_FIRST_S) == (not grows)
    if grows:
        (pause_s,) = pauses(host, "w0", 1, up=True, after_s=100 * LIVED_WELL_S)
        assert pause_s <= PAUSE_FIRST_S, "all is forgiven"


def test_time_before_it_came_up_is_no_good_life():
    host = House(supervisor())
    host.tell(ChildUp("w0"))
    assert pauses(host, "w0", 8, after_s=2 * LIVED_WELL_S)[-1] > 8 * PAUSE_FIRST_S


@pytest.mark.parametrize(
    ("deaths", "every_s", "words"),
    [(1, 5.0, "once"), (2, 5.0, "2 times in 5 s"), (6, 24.0, "6 times in 2 minutes"), (3, 30.0, "3 times in a minute")],
)
def test_how_often_it_died_is_said_in_words(deaths, every_s, words):
    host = House(supervisor())
    host.tell(ChildUp("w0"))
    for number in range(deaths):
        host.now_s = 1.0 + number * every_s
        effects = host.dies("w0")
    (told,) = of_kind(effects, TellDeath)
    assert (told.name, told.how, told.often) == ("w0", "signal 9", words)


# ---------------------------------------------------------------- given up


def test_who_never_came_up_is_given_up_after_some_deaths_however_slow_they_are():
    host = House(supervisor())
    for _ in range(DEATHS_UNSEEN_MAX):
        assert of_kind(host.dies("w0", 1, after_s=400.0), TellDeath)
    (told,) = of_kind(host.dies("w0", 1, after_s=400.0), TellGivenUp)
    assert (told.name, told.how) == ("w0", "exit 1") and told.fix
    assert not of_kind(host.tell(TimerFired(("start", "w0"))), StartChild) and not of_kind(host.effects, FinishParent)


DEATHS = {"what it says is hopeless": (1, 2), "it dies again and again": (DEATHS_UNSEEN_MAX + 1, 1)}


@pytest.mark.parametrize(("times", "returncode"), DEATHS.values(), ids=DEATHS.keys())
@pytest.mark.parametrize(
    ("settings", "ready", "ends"),
    [({}, False, True), ({"remote_workers": True}, False, False), ({}, True, False)],
    ids=["nobody else", "others may come", "it has been ready"],
)
def test_up_ends_when_no_worker_is_left_that_could_serve(times, returncode, settings, ready, ends):
    host = House(supervisor(**settings))
    if ready:
        host.tell(ChildReady("frontend"))
    for name in ("w0", "w1"):
        assert not of_kind(host.effects, SignalChild)
        for _ in range(times):
            effects = host.dies(name, returncode)
    assert of_kind(effects, TellGivenUp)
    assert [child.name for child in of_kind(effects, SignalChild)] == (["coordinator", "frontend"] if ends else [])
    if ends:
        finish = host.end()
        assert (finish.exit_code, finish.asked) == (2 if returncode == 2 else 4, False)
        assert "no worker is left" in finish.why and f"exit {returncode}" in finish.why


@pytest.mark.parametrize("name", ["coordinator", "frontend"])
@pytest.mark.parametrize(
    ("up", "times", "returncode", "exit_code"), [(False, DEATHS_UNSEEN_MAX + 1, 1, 4), (True, 1, 7, 7)]
)
def test_a_house_cannot_stand_without_a_vital_child(name, up, times, returncode, exit_code):
    """What is wrong with a model is found out by a child that has come up."""
    host = House(supervisor())
    for _ in range(times):
        effects = host.dies(name, returncode, up=up)
    assert of_kind(effects, TellGivenUp) and len(of_kind(effects, SignalChild)) == 3
    finish = host.end()
    assert finish.exit_code == exit_code and name in finish.why and f"exit {returncode}" in finish.why


@pytest.mark.parametrize("name", ["coordinator", "w0", "frontend"])
def test_after_all_was_ready_nobody_who_served_is_taken_for_hopeless(name):
    host = House(supervisor())
    for child in PIDS:
        host.tell(ChildUp(child))
    host.tell(ChildReady("frontend"))
    assert of_kind(host.dies(name, 7), TellDeath)


@pytest.mark.parametrize(
    ("times", "returncode", "exit_code"), [(1, 6, 6), (DEATHS_UNSEEN_MAX + 1, 1, 1), (DEATHS_UNSEEN_MAX + 1, -9, 4)]
)
def test_the_only_child_of_a_worker_ends_it_with_its_own_word(times, returncode, exit_code):
    made = Supervisor((ChildPlan(name="w0", role="worker", vital=True),), random.Random(1))
    made.handle(Began(), 0.0)
    made.handle(ChildStarted("w0", PIDS["w0"]), 0.0)
    host = House(made)
    for _ in range(times):
        effects = host.dies("w0", returncode)
    (finish,) = of_kind(effects, FinishParent)
    assert (finish.exit_code, finish.asked) == (exit_code, False)


def test_a_machine_that_starts_no_process_now_is_asked_again():
    host = House(supervisor())
    host.tell(ChildUp("w0"))
    host.now_s = 5.0
    (start,) = of_kind(host.dies("w0"), SetTimer)
    effects = host.tell(ChildGone("w0", host.pids["w0"], -9))
    host.now_s = start.at_s
    for _ in range(10):
        (told,) = of_kind(effects, TellDeath)
        assert of_kind(host.tell(TimerFired(("start", "w0"))), StartChild)
        effects = host.tell(ChildNotStarted("w0", "no memory"))
    assert told.how == "could not be started: no memory" and not of_kind(effects, Send)


# ---------------------------------------------------------------- stopping


def test_frontends_stop_first_then_the_coordinator_and_workers_last():
    """Streams are over when the frontend is gone; nobody plans over what is left when the coordinator is gone."""
    made = supervisor()
    assert of_kind(made.handle(StopAsked(), 1.0), SignalChild) == [SignalChild("frontend", 13, TERM)]
    assert of_kind(made.handle(ChildGone("frontend", 13, 0), 2.0), SignalChild) == [
        SignalChild("coordinator", 10, TERM)
    ]
    workers = [SignalChild("w0", 11, TERM), SignalChild("w1", 12, TERM)]
    assert of_kind(made.handle(ChildGone("coordinator", 10, 0), 2.2), SignalChild) == workers
    assert of_kind(made.handle(ChildGone("w1", 12, 0), 2.4), SignalChild) == [], "the other one knows already"
    (finish,) = of_kind(made.handle(ChildGone("w0", 11, 0), 2.5), FinishParent)
    assert (finish.exit_code, finish.asked) == (0, True)


def test_a_worker_that_dies_while_streams_drain_is_told_of_and_not_started_again():
    made = supervisor()
    made.handle(StopAsked(), 1.0)
    effects = made.handle(ChildGone("w0", 11, -9), 2.0)
    assert [send.message for send in of_kind(effects, Send)] == [ChildExited(node_id="w0", pid=11, how="signal 9")]
    assert not of_kind(effects, (SetTimer, SignalChild))


@pytest.mark.parametrize("again", [StopAsked(), TimerFired("drained")], ids=["a second Ctrl-C", "the drain time"])
def test_then_nobody_is_asked_any_more(again):
    made = supervisor()
    made.handle(StopAsked(), 1.0)
    made.handle(ChildGone("frontend", 13, 0), 2.0)
    kills = [SignalChild(name, PIDS[name], KILL) for name in ("coordinator", "w0", "w1")]
    assert made.handle(again, 2.5) == kills
    assert of_kind(made.handle(ChildGone("w0", 11, -9), 2.6), SignalChild) == []
    made.handle(ChildGone("w1", 12, -9), 2.6)
    (finish,) = of_kind(made.handle(ChildGone("coordinator", 10, -9), 2.7), FinishParent)
    assert finish.exit_code == 0


def test_a_child_that_was_just_being_started_is_ended_as_well():
    made = supervisor()
    made.handle(ChildGone("w0", 11, -9), 1.0)
    made.handle(StopAsked(), 1.1)
    assert made.handle(TimerFired(("start", "w0")), 1.3) == []
    assert made.handle(ChildStarted("w0", 20), 1.4) == [SignalChild("w0", 20, KILL)]
