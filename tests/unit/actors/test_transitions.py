"""The tables of states: SPEC.md shows them, no machine leaves them, and every row of them happens.

Each machine is led by long random walks over all that may come to it, in any order; at each step its own `check` holds.
"""

import importlib
import pkgutil
import random
from pathlib import Path

import attrs
import pytest

import hydra.actors
from hydra.actors.core import membership
from hydra.actors.core.facts import LaneBroken, Left, StepOverdue
from hydra.actors.core.machine import Received, TimerFired
from hydra.actors.core.membership import Greet, Leave
from hydra.actors.core.names import PLANNER, REGISTRY
from hydra.actors.core.transitions import Transitions, rows
from hydra.actors.membership import registry
from hydra.actors.planning import deployment
from hydra.actors.planning.deployment import Deploy, Deployment, Halt
from hydra.actors.planning.draft import Draft
from hydra.actors.planning.plan_settings import PlanSettings
from hydra.actors.planning.split import LayerShare
from hydra.actors.sessions import session
from hydra.actors.sessions.session import Begin, Orphaned, Stop
from hydra.actors.stage import stage
from hydra.actors.stage.stage import Activated, SliceIn, SliceRefused, Stage, ThreadFenced
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Address, Epoch
from hydra.protocol.messages.generations import OpenRefused, Reopen
from hydra.protocol.messages.membership import (
    Beacon,
    ChildExited,
    Expelled,
    Goodbye,
    Heartbeat,
    SayHello,
    StageProgress,
)
from hydra.protocol.messages.plans import DropSlice, Ready, SliceLoaded
from hydra.protocol.refusal import Refusal
from hydra.protocol.sampled_token import SampledToken
from tests.unit.actors.test_member import member, welcome
from tests.unit.actors.test_planner import MODEL, joined
from tests.unit.actors.test_registry import LATE, PARENT, hello
from tests.unit.actors.test_session import session as new_session
from tests.unit.actors.test_stage import FACTS, order, plan

SPEC = Path(hydra.__file__).parent / "protocol" / "SPEC.md"
WALKS, STEPS = 300, 40
NO = Refusal(code="timeout", message="no")


def tables():
    """Every TRANSITIONS in the house, by its module."""
    found = {}
    for module in pkgutil.walk_packages(hydra.actors.__path__, "hydra.actors."):
        table = getattr(importlib.import_module(module.name), "TRANSITIONS", None)
        if isinstance(table, Transitions) and Transitions.__module__ != module.name:
            found[module.name] = table
    return found


class LeaseWalk:
    """A registry with two nodes and their parent, and the hour."""

    def __init__(self, rng):
        self.rng, self.machine, self.now_s, self.lives = (
            rng,
            registry.Registry(term=1, results_addr=Endpoint("tcp://r")),
            0.0,
            1,
        )
        self.hears("p-1", hello("p", family="ours", **PARENT))
        self.greet()

    def hears(self, peer, message):
        return self.machine.handle(Received(Address(peer, "member"), message), self.now_s)

    def check(self):
        self.machine.check()

    def lease(self):
        return next((lease for lease in self.machine.members() if lease.hello.node_id == "a"), None)

    def generation(self):
        lease = self.lease()
        return lease.generation if lease is not None else 0

    def greet(self):
        self.hears(f"a-{self.lives}", hello("a", family="ours"))

    def greet_anew(self):
        self.lives += 1
        self.greet()

    def beat(self):
        peer = self.lease().peer if self.lease() is not None else "a-1"
        progress = (StageProgress(route=LATE.route, epoch=LATE.epoch, accepted=LATE.step, sent=0),)
        beat = Heartbeat(generation=self.generation(), memory_free_bytes=1, stale_dropped=0, progress=progress)
        self.hears(peer, beat)

    def leave(self):
        self.hears(f"a-{self.lives}", Goodbye(generation=self.generation(), why="asked"))

    def exit(self):
        self.hears("p-1", ChildExited(node_id="a", pid=100, how="signal 9"))

    def lane_breaks(self):
        self.machine.handle(LaneBroken(f"a-{self.lives}"), self.now_s)

    def overdue(self):
        self.machine.handle(attrs.evolve(LATE, nodes=("a",)), self.now_s)

    def sweep(self):
        self.now_s += self.rng.choice((0.4, 1.6, 6.0))
        beat = Heartbeat(generation=self.machine.members()[0].generation, memory_free_bytes=1, stale_dropped=0)
        self.hears("p-1", beat)  # the parent lives on
        self.machine.handle(TimerFired("sweep"), self.now_s)

    def events(self):
        return [
            self.greet, self.greet_anew, self.beat, self.leave, self.exit, self.lane_breaks, self.overdue, self.sweep
        ]  # fmt: skip


class MemberWalk:
    def __init__(self, rng):
        self.machine = member()
        self.machine.handle(Greet(), 0.0)

    def check(self):
        self.machine.check()

    def hears(self, message):
        return lambda: self.machine.handle(Received(REGISTRY, message), 1.0)

    def told(self, event):
        return lambda: self.machine.handle(event, 1.0)

    def events(self):
        return [
            self.hears(welcome(5)), self.hears(welcome(6)), self.hears(Expelled(generation=5, why="")),
            self.hears(SayHello(term=4, generation=5)), self.hears(Beacon(term=9, number=1, counter=1)),
            self.hears(Beacon(term=3, number=1, counter=1)), self.told(LaneBroken("c")), self.told(Leave("asked")),
            self.told(TimerFired("greet")), self.told(TimerFired("beat")),
        ]  # fmt: skip


class SessionWalk:
    def __init__(self, rng):
        self.machine = new_session()
        self.machine.handle(Begin(), 0.0)

    def check(self):
        self.machine.check()

    def told(self, make):
        return lambda: self.machine.handle(make(self.machine), 1.0)

    def token(self, ahead, finish=None):
        return self.told(
            lambda one: SampledToken(attempt=one.attempt, position=one.position + ahead, token=3, finish=finish)
        )

    def events(self):
        return [
            self.token(0), self.token(1), self.token(-1), self.token(0, "stop"),
            self.told(lambda one: Reopen(session=7, attempt=one.attempt, why="epoch", death=False)),
            self.told(lambda one: Reopen(session=7, attempt=one.attempt, why="epoch", death=True)),
            self.told(lambda one: OpenRefused(session=7, attempt=one.attempt, refusal=NO)),
            self.told(lambda one: Orphaned()), self.told(lambda one: Stop()),
            self.told(lambda one: TimerFired("unanswered")),
        ]  # fmt: skip


class StageWalk:
    """Whatever the planner says of one route, whatever the loader answers, and a thread that says each fence once."""

    def __init__(self, rng):
        self.rng, self.machine, self.number, self.board, self.said = rng, Stage(), 0, None, None

    def told(self, event):
        for effect in self.machine.handle(event, 1.0):
            if isinstance(effect, stage.Publish):
                self.board = effect.fence

    def check(self):
        self.machine.check()
        waits = self.board is not self.said and not self.board.open
        assert waits or not self.machine._unfenced, "a word of the thread is waited for that it has said already"

    def epoch(self):
        return Epoch(1, self.number)

    def load(self):
        self.number += 1
        self.told(Received(PLANNER, order(self.epoch())))

    def drop(self):
        self.number += 1
        self.told(Received(PLANNER, DropSlice(route=1, epoch=self.epoch())))

    def thread(self):
        if self.board is not self.said:
            self.said = self.board
            if not self.board.open:
                self.told(ThreadFenced(1, self.board.epoch))

    def goes_on(self):
        """What follows when all goes well, as far as it comes."""
        self.thread()
        epoch = self.epoch()
        events = (SliceIn(1, epoch, FACTS), Received(PLANNER, plan(epoch)), Activated(1, epoch))
        for event in events[: self.rng.randint(1, 3)]:
            self.told(event)

    def events(self):
        return [
            self.load, self.drop, self.thread, self.goes_on, lambda: self.told(SliceIn(1, self.epoch(), FACTS)),
            lambda: self.told(SliceRefused(1, self.epoch(), NO)), lambda: self.told(Activated(1, self.epoch())),
            lambda: self.told(Received(PLANNER, plan(self.epoch()))), lambda: self.told(Left(why="expelled")),
        ]  # fmt: skip


class DeploymentWalk:
    """Two nodes that take turns in front, whatever they answer, of this epoch only: the owner sees to that."""

    def __init__(self, rng):
        self.machine = Deployment(1, "m", MODEL, PlanSettings(), lambda *_: (), "tcp://results")
        self.rng, self.number = rng, 0
        self.present = {name: joined(name) for name in ("a", "b")}

    def check(self):
        self.machine.check()

    def place(self):
        self.number += 1
        names = self.rng.choice((("a", "b"), ("b", "a"), ("a",)))
        cut = 12 // len(names)
        shares = tuple(
            LayerShare(
                node=name, first_layer=at * cut, end_layer=(at + 1) * cut, weight_bytes=1, kv_memory_bytes=1 << 30
            )
            for at, name in enumerate(names)
        )
        sources = dict.fromkeys(names, ())
        draft = Draft("float32", shares, moves=True)
        self.told(Deploy(epoch=Epoch(1, self.number), draft=draft, present=self.present, sources=sources))

    def told(self, event):
        self.machine.handle(event, 1.0)

    def stage_says(self, make):
        if self.machine.stages:
            peer = self.rng.choice(self.machine.stages).node.peer
            self.told(Received(Address(peer, "stage"), make(Epoch(1, self.number))))

    def loaded(self):
        self.stage_says(
            lambda epoch: SliceLoaded(route=1, epoch=epoch, kv_blocks_max=500, weight_bytes=1, read_bytes=1, load_s=0.1)
        )

    def ready(self):
        if self.machine.phase in ("activating", "ready"):  # no stage says so before it was told to
            self.stage_says(lambda epoch: Ready(route=1, epoch=epoch))

    def events(self):
        return [self.place, self.loaded, self.loaded, self.ready, self.ready, lambda: self.told(Halt(death=False))]


WALKS_OF = {
    deployment.__name__: DeploymentWalk,
    registry.__name__: LeaseWalk,
    membership.__name__: MemberWalk,
    session.__name__: SessionWalk,
    stage.__name__: StageWalk,
}


def walk(of, number):
    """A few kinds of events, in any order: so that rare combinations are not drowned by frequent ends."""
    rng = random.Random(f"walk {number}")
    walker = of(rng)
    events = walker.events()
    some = rng.sample(events, rng.randint(1, len(events)))
    for _ in range(STEPS):
        rng.choice(some)()
        walker.check()


def test_every_table_is_walked():
    assert set(tables()) == set(WALKS_OF), "a machine's TRANSITIONS has no walk here, or a walk has no table"


@pytest.mark.parametrize("module", WALKS_OF)
def test_every_row_happens_and_no_other_change(module, monkeypatch):
    happened, step = set(), Transitions.step

    def noted(table, before, cause, after):
        step(table, before, cause, after)
        happened.add((table.of, before, cause, after))
        return after

    monkeypatch.setattr(Transitions, "step", noted)
    for number in range(WALKS):
        walk(WALKS_OF[module], number)
    table = tables()[module]
    missing = [row for row in table.rows if (table.of, *row) not in happened]
    assert not missing, f"never seen: {missing}"


@pytest.mark.parametrize("module", tables())
def test_the_contract_shows_the_table_of_the_code(module):
    printed = tables()[module].as_markdown()
    assert printed in SPEC.read_text(), f"SPEC.md does not show this, from {module}:\n\n{printed}"


def test_a_change_that_is_not_listed_is_refused():
    table = Transitions("door", "shut", (*rows("shut", Greet, "open"), *rows("open", "wind", "shut")))
    assert table.step("shut", Greet, "open") == "open" and table.step("open", Stop, "open") == "open"
    for change in (("shut", "wind", "open"), ("open", Greet, "shut"), ("open", "wind", "ajar")):
        with pytest.raises(AssertionError, match="a door went"):
            table.step(*change)
    with pytest.raises(AssertionError, match="twice"):
        Transitions("door", "shut", (*rows("shut shut", Greet, "open"),))


@pytest.mark.parametrize("lost", [StepOverdue, ChildExited, LaneBroken, Goodbye])
def test_a_machine_that_leaves_its_table_raises(lost, monkeypatch):
    """The table without one of its rows: the first walk that comes by finds it."""
    shorter = Transitions("lease", "unknown", tuple(row for row in registry.TRANSITIONS.rows if row[1] is not lost))
    monkeypatch.setattr(registry, "TRANSITIONS", shorter)
    with pytest.raises(AssertionError, match=f"--`{lost.__name__}`--> lost"):
        for number in range(WALKS):
            walk(LeaseWalk, number)
