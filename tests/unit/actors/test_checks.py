"""Each `check` sees the bug that it is for: a machine that is right, and one step that a careless hand got wrong."""

import random

import attrs
import pytest

from hydra.actors.core.facts import NodeJoined
from hydra.actors.core.host import ActorHost
from hydra.actors.families.death_book import DeathBook
from hydra.actors.planning.desired_model import Recover
from hydra.actors.planning.load_jobs import Jobs
from hydra.actors.planning.reach import HERE, Reach
from hydra.actors.planning.startup_quorum import StartupQuorum
from hydra.actors.scheduling.fair_queue import FairQueue
from hydra.actors.scheduling.free_blocks import FreeBlocks
from hydra.actors.scheduling.kv_ledger import KvLedger
from hydra.actors.scheduling.prefill_turns import PrefillTurns
from hydra.actors.scheduling.probes import Probes
from hydra.actors.scheduling.row import RowKey
from hydra.actors.scheduling.row_faults import FAILURES_MAX, RowFaults
from hydra.actors.scheduling.step_bound import StepBound
from hydra.actors.sessions.sessions import Sessions
from hydra.protocol.batch import token_ids
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Address
from hydra.protocol.messages.plans import Unanswered
from hydra.protocol.refusal import Refusal
from hydra.simulation.inspector import PERIOD, Inspector, parts_of
from tests.unit.actors.test_fair_queue import Crowd
from tests.unit.actors.test_member import hears, member, welcome
from tests.unit.actors.test_planner import Hall, joined
from tests.unit.actors.test_registry import Room
from tests.unit.actors.test_scheduler import add, answer, engine, sent
from tests.unit.actors.test_session import begun, session, token
from tests.unit.actors.test_stage import E2, loading, ready
from tests.unit.actors.test_stage_line import FIRST, line
from tests.unit.actors.test_supervisor import supervisor

ASKER = Address("f", "asks")
NO = Refusal(code="timeout", message="no")


def a_registry():
    room = Room()
    room.joins("a")
    room.joins("b")
    return room.registry


def a_member():
    one = member()
    hears(one, welcome())
    return one


def some_sessions():
    table = Sessions(5)
    table._sessions[7] = begun()
    return table


def a_line():
    at = line()
    at.accept(FIRST)
    return at


def a_reach():
    reach = Reach("tcp://results")
    for node in ("a", "b"):
        reach.joined(joined(node), 0.0)
    reach.answered(1, HERE, (), 0.0)
    return reach


def a_quorum():
    quorum = StartupQuorum()
    quorum.begin(Recover((), 2, (), 5.0), 0.0)
    return quorum


def some_jobs():
    jobs = Jobs()
    jobs.end(jobs.begin(1, "m", "/m"), NO, None)
    jobs.begin(1, "m", "/m")
    return jobs


def a_ledger():
    ledger = KvLedger(8, 4)
    ledger.open(1, token_ids(range(9)))
    ledger.grow(1, 9)
    ledger.name_prompt(1, token_ids(range(9)))
    return ledger


def a_scheduler():
    at = engine()
    add(at, 1, 3)
    for step, batch in sent(at):
        answer(at, step, batch)
    add(at, 2, 30)
    sent(at)
    return at


def some_turns():
    at = engine()
    add(at, 1, 3)
    return at._prefill


def a_bound():
    bound = StepBound()
    bound.fail(8, 0.0)
    return bound


def some_probes():
    probes = Probes()
    probes.start(ASKER, 1, "m")
    return probes


def some_faults():
    faults = RowFaults()
    at = engine()
    faults.judge(add(at, 1, 3), "no memory")
    return faults


def a_book():
    book = DeathBook(random.Random(1), 8.0)
    book.note(1.0, 0.0)
    return book


def put(mapping, key, value):
    mapping[key] = value


def spoil(thing, **changes):
    for name, value in changes.items():
        setattr(thing, name, value)


# (what is right, the step that went wrong, what is said of it)
PLANTED = {
    "a lost lease is kept": (a_registry, lambda it: spoil(it.members()[0], state="lost"), "a lost lease"),
    "a name is given twice": (a_registry, lambda it: put(it._members, "c", it.members()[0]), "another's name"),
    "a generation is given twice": (
        a_registry,
        lambda it: spoil(it.members()[0], generation=second(it)),
        "granted twice",
    ),
    "goodbye keeps the generation": (a_member, lambda it: spoil(it, _gone=True), "said goodbye"),
    "a replay forgets a token": (
        lambda: after_a_replay(),
        lambda it: spoil(it.emitted, _size=len(it.emitted) - 1),
        "beyond what was shown",
    ),
    "the end is passed over": (begun, lambda it: [token(it, 1) for _ in range(101)], "more than was asked for"),
    "an ended session is kept": (some_sessions, lambda it: spoil(it._sessions[7], done=True), "is done, and kept"),
    "a session under another's number": (some_sessions, lambda it: put(it._sessions, 8, session()), "is kept under 8"),
    "a load begins before the thread let go": (loading, lambda it: it._unfenced.add(1), "behind a fence"),
    "a drop waits for no word": (ready, lambda it: spoil(it._slices[1], drop="now"), "waits for no fence"),
    "an order of another epoch": (ready, lambda it: spoil(it._slices[1], epoch=E2), "another epoch"),
    "a row is given a block twice": (a_line, lambda it: it._routes[1].rows[5].blocks.append(4), "a block twice"),
    "a line runs ahead of its fence": (a_line, lambda it: it.board.remove(1), "ahead of its fence"),
    "two children are one process": (supervisor, lambda it: spoil(it._children["w0"], pid=10), "are one process"),
    "a dead child is ready": (supervisor, lambda it: spoil(it._children["w0"], pid=None, ready=True), "is remembered"),
    "a child is given up and runs": (supervisor, lambda it: spoil(it._children["w0"], given_up=True), "given up, and"),
    "a failure that looks like success": (supervisor, lambda it: spoil(it, _asked=False), "all went well"),
    "deaths out of order": (a_book, lambda it: spoil(it, _deaths_s=[2.0, 1.0]), "more deaths|out of their order"),
    "what was found of the lost is kept": (a_reach, lambda it: it._nodes.pop("a"), "is gone|for nobody"),
    "a question about nothing": (a_reach, lambda it: put(it._under_way, (99, "b"), ()), "about nothing"),
    "it gathers those it can count": (a_quorum, lambda it: spoil(it, _gathers=True), "how many will come"),
    "a job fails without a reason": (some_jobs, lambda it: put(it._jobs, "load-1-1", without_a_reason(it)), "of None"),
    "a block is lost": (a_ledger, lambda it: it._owners.pop(0), "is lost or in two places"),
    "a name outlives its block": (a_ledger, lambda it: it._by_prefix.popitem(), "names and blocks disagree"),
    "blocks are counted wrong": (lambda: FreeBlocks(4), lambda it: spoil(it, _count=3), "not free"),
    "a flight comes home twice": (a_scheduler, lambda it: it.flights.popleft(), "flights"),
    "a row waits twice": (a_scheduler, lambda it: it._decode.extend(it.rows.values()), "waits in"),
    "a pledge is not given back": (a_scheduler, lambda it: spoil(it, _pledged=it._pledged + 1), "pledged to nobody"),
    "a row ends and keeps its blocks": (a_scheduler, lambda it: it.rows.pop(2), "without a row|that is gone"),
    "a turn without rows": (some_turns, lambda it: spoil(it, _count=0), "rows are counted"),
    "a bound of nothing": (a_bound, lambda it: spoil(it, _tokens=0), "a bound of 0"),
    "two probes of one model": (some_probes, lambda it: it.start(ASKER, 2, "m"), "two probes"),
    "a row is replayed for ever": (some_faults, lambda it: put(it._failures, "key", FAILURES_MAX), "goes on after"),
}


def second(registry):
    return registry.members()[1].generation


def without_a_reason(jobs):
    return attrs.evolve(jobs._jobs["load-1-1"], refusal=None)


def after_a_replay():
    one = begun()
    token(one, 5)
    one._replay(1.0, why="gap", death=False)
    return one


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_seen(bug):
    make, plant, said = PLANTED[bug]
    machine = make()
    machine.check()
    with pytest.raises(AssertionError, match=said):
        plant(machine)
        machine.check()


def test_a_queue_counts_who_is_there():
    queue = next(value for value in vars(Crowd()).values() if isinstance(value, FairQueue))
    queue.check()
    queue._running[RowKey("f", 1)] = None
    with pytest.raises(AssertionError):
        queue.check()


def test_turns_of_an_owner_are_bounded():
    turns = PrefillTurns()
    turns.check()
    at = engine()
    row = add(at, 1, 3)
    at._prefill.served(row, 5)
    at._prefill._owners[""].used = 10**6
    with pytest.raises(AssertionError, match="more than a turn"):
        at._prefill.check()


# ---------------------------------------------------------------- a bug that a check has found


def test_what_is_found_of_a_node_that_was_lost_meanwhile_is_let_go_and_nobody_dials_it_again():
    reach = Reach("tcp://results")
    reach.joined(joined("a"), 0.0)
    reach.lost("a")
    assert reach.answered(1, HERE, [Unanswered(addr=Endpoint("tcp://a-1"), reason="no answer")], 1.0) == []
    reach.check()
    assert reach.redial(5.0) == []


# ---------------------------------------------------------------- who calls them


@attrs.define
class Part:
    checks: int = 0

    def check(self):
        self.checks += 1


@attrs.define
class Whole:
    part: Part = attrs.field(factory=Part)
    parts: dict = attrs.field(factory=lambda: {1: Part(), 2: Part()})
    right: bool = True

    def handle(self, event, now_s):
        self.right = event != "a bug"
        return []

    def check(self):
        assert self.right, "it has a bug"


Whole.__module__ = Part.__module__ = "hydra.actors.tests"


async def test_a_host_that_is_inspected_checks_after_every_event_and_now_and_then_all_parts():
    faults, beside, machine = [], Part(), Whole()
    host = ActorHost("p", lambda *_: None)
    host.inspect = Inspector(faults, beside=(beside,)).look
    host.add("whole", machine, lambda effect: None)
    for number in range(PERIOD):
        assert machine.part.checks == 0, number
        host.post("whole", number)
    assert [part.checks for part in (machine.part, *machine.parts.values(), beside)] == [1, 1, 1, 1]
    with pytest.raises(AssertionError, match="it has a bug"):
        host.post("whole", "a bug")
    assert len(faults) == 1, "and whoever contains it cannot hide it"


def test_the_parts_of_a_planner_are_found():
    hall = Hall()
    hall.running("a", "b")
    kinds = {type(part) for part in parts_of(hall.planner)}
    assert {Reach, StartupQuorum, Jobs} <= kinds and NodeJoined not in kinds
