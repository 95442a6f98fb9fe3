"""The checkers, checked: each bug that is planted here must be found by the first seeds, or the simulator is blind."""

from collections.abc import Callable

import attrs
import pytest

from hydra.actors.core.machine import Send
from hydra.actors.membership.registry import Registry
from hydra.actors.scheduling.broker import Broker
from hydra.actors.scheduling.kv_ledger import KvLedger
from hydra.actors.scheduling.scheduler import RouteScheduler
from hydra.actors.scheduling.step_bound import StepBound
from hydra.actors.sessions.session import Session
from hydra.actors.sessions.sessions import Sessions
from hydra.actors.stage.stage_line import StageLine
from hydra.protocol.batch import GrowingIds, no_faults
from hydra.protocol.messages.generations import Close, Open
from hydra.protocol.sampled_token import SampledToken
from hydra.simulation.pocket_model import PocketCompute
from tests.sim.swarm import play_broken_row, play_seed, play_short_memory

SEEDS_MAX = 150


def skip_the_epoch_check(monkeypatch):
    monkeypatch.setattr(StageLine, "admits", lambda line, route, epoch: None if line.board.read(route) else "no route")


def forget_the_kv_free(monkeypatch):
    def close(ledger, row):
        ledger._tables.pop(row, None)

    monkeypatch.setattr(KvLedger, "close", close)


def replay_from_the_wrong_position(monkeypatch):
    honest = Session._replay

    def replay(session, now_s, **said):
        session.emitted = GrowingIds(session.emitted.column[:-1])
        return honest(session, now_s, **said)

    monkeypatch.setattr(Session, "_replay", replay)


def commit_a_token_twice(monkeypatch):
    honest = Session._token

    def token(session, event, now_s):
        effects = honest(session, event, now_s)
        return effects + [e for e in effects if isinstance(e, SampledToken) and e.finish is None]

    monkeypatch.setattr(Session, "_token", token)


def commit_an_echo(monkeypatch):
    """A repeated Tokens message is taken for new."""
    honest = Session._token

    def token(session, event, now_s):
        return honest(session, attrs.evolve(event, attempt=session.attempt, position=session.position), now_s)

    monkeypatch.setattr(Session, "_token", token)


def forget_a_token_in_the_replay(monkeypatch):
    """The history is one token short of what was shown, and the count agrees with it."""
    honest = Sessions.handle

    def handle(sessions, event, now_s):
        effects = honest(sessions, event, now_s)
        for session in sessions._sessions.values():
            if session.attempt and len(session.emitted) > 5:
                session.emitted.column[3] = session.emitted.column[2]
        return effects

    monkeypatch.setattr(Sessions, "handle", handle)


def ignore_who_leaves(monkeypatch):
    honest = Broker.handle

    def handle(broker, event, now_s):
        message = getattr(event, "message", None)
        return [] if isinstance(message, Close) else honest(broker, event, now_s)

    monkeypatch.setattr(Broker, "handle", handle)


def share_a_block_with_a_stranger(monkeypatch):
    """The prefix cache looks at a block's last token only."""
    honest = KvLedger._prefix_names

    def names(ledger, prompt, n_blocks):
        return honest(ledger, [0] * len(prompt), n_blocks)

    monkeypatch.setattr(KvLedger, "_prefix_names", names)


def keep_the_pool_of_the_old_epoch(monkeypatch):
    """The Broker believes that what an old epoch cached is still there."""
    honest = RouteScheduler.__init__
    ledgers = {}

    def make(engine, **values):
        ledger = values["ledger"]
        kept = ledgers.setdefault(ledger.blocks_total, ledger)
        ledger._by_prefix, ledger._prefix_of = kept._by_prefix, kept._prefix_of
        for block in ledger._prefix_of:
            if block in ledger._free:
                assert ledger._free.take("kept", block - 1, 1, 1) == block
                ledger._kept[block] = None
        honest(engine, **values)

    monkeypatch.setattr(RouteScheduler, "__init__", make)


def never_ask_again(monkeypatch):
    """A session whose route broke waits for words that will not come."""
    monkeypatch.setattr(Session, "_replay", lambda session, now_s, why, death: [])


def end_one_token_late(monkeypatch):
    honest = Session._open

    def opened(session, now_s):
        effects = honest(session, now_s)
        return [
            attrs.evolve(e, message=attrs.evolve(e.message, max_tokens=e.message.max_tokens + 1))
            if isinstance(e, Send) and isinstance(e.message, Open)
            else e
            for e in effects
        ]

    monkeypatch.setattr(Session, "_open", opened)


def take_no_number_for_a_token(monkeypatch):
    """The Broker does not look at the fault column."""
    honest = RouteScheduler.take

    def take(engine, result, now_s):
        return honest(engine, attrs.evolve(result, fault=no_faults(result.token)), now_s)

    monkeypatch.setattr(RouteScheduler, "take", take)


def blame_whoever_stands_on_broken_blocks(monkeypatch):
    honest = RouteScheduler._break

    def end(engine, row):
        row.cached = 0
        honest(engine, row)

    monkeypatch.setattr(RouteScheduler, "_break", end)


def forget_to_close_a_broken_row(monkeypatch):
    """The stages are not told."""
    honest = RouteScheduler._break

    def end(engine, row):
        row.announced = False
        honest(engine, row)

    monkeypatch.setattr(RouteScheduler, "_break", end)


def die_of_a_broken_row(monkeypatch):
    """What is a fault of a row is one of the process."""
    honest = PocketCompute.launch

    def launch(compute, run):
        outcome = honest(compute, run)
        if outcome.fault.any():
            raise FloatingPointError("logits are not finite")
        return outcome

    monkeypatch.setattr(PocketCompute, "launch", launch)


def die_without_memory(monkeypatch):
    """What is a fault of a step is one of the process."""
    honest = PocketCompute.launch

    def launch(compute, run):
        outcome = honest(compute, run)
        if outcome.out_of_memory:
            raise MemoryError("nothing left")
        return outcome

    monkeypatch.setattr(PocketCompute, "launch", launch)


def replay_in_steps_as_large_as_before(monkeypatch):
    monkeypatch.setattr(StepBound, "fail", lambda bound, tokens, now_s: None)


def share_what_was_never_filled(monkeypatch):
    """The names of blocks outlive the step that should have filled them."""
    monkeypatch.setattr(KvLedger, "unname", lambda ledger, blocks: None)


def spare_whoever_began_with_empty_blocks(monkeypatch):
    honest = RouteScheduler._fail

    def fail(engine, row, fault):
        if fault == "not finite" or not row.cached:
            honest(engine, row, fault)

    monkeypatch.setattr(RouteScheduler, "_fail", fail)


def compute_behind_a_stage_without_memory(monkeypatch):
    """The mark is lost on the way: the next stage works on what is not there."""
    honest = StageLine.accept

    def accept(line, step):
        return honest(line, attrs.evolve(step, out_of_memory=False))

    monkeypatch.setattr(StageLine, "accept", accept)


def keep_the_lease_of_the_lost(monkeypatch):
    """Nothing that a reader sees goes wrong for a long while: only the Registry disagrees with itself."""
    honest = Registry._lose

    def lose(registry, lease, *reasons, **named):
        effects = honest(registry, lease, *reasons, **named)
        registry._members[lease.hello.node_id] = lease
        return effects

    monkeypatch.setattr(Registry, "_lose", lose)


def pledge_blocks_to_nobody(monkeypatch):
    """Blocks that a row has taken stay pledged: the route holds less and less."""
    honest = RouteScheduler.add

    def add(engine, row):
        honest(engine, row)
        engine._pledged += 1

    monkeypatch.setattr(RouteScheduler, "add", add)


BUGS = [
    skip_the_epoch_check,
    forget_the_kv_free,
    replay_from_the_wrong_position,
    commit_a_token_twice,
    commit_an_echo,
    forget_a_token_in_the_replay,
    ignore_who_leaves,
    share_a_block_with_a_stranger,
    keep_the_pool_of_the_old_epoch,
    never_ask_again,
    end_one_token_late,
    keep_the_lease_of_the_lost,
    pledge_blocks_to_nobody,
]


BROKEN_ROW_BUGS = [
    take_no_number_for_a_token,
    blame_whoever_stands_on_broken_blocks,
    forget_to_close_a_broken_row,
    die_of_a_broken_row,
]


SHORT_MEMORY_BUGS = [
    die_without_memory,
    replay_in_steps_as_large_as_before,
    share_what_was_never_filled,
    spare_whoever_began_with_empty_blocks,
    compute_behind_a_stage_without_memory,
]


def first_failure(play: Callable[[int], object], first: int) -> tuple[int, BaseException] | None:
    """`first` is tried before all others: where it was found the last time."""
    for seed in (first, *range(1, SEEDS_MAX + 1)):
        try:
            play(seed)
        except Exception as why:  # noqa: BLE001 - whatever it dies of, it is found
            return seed, why
    return None


LATE = {
    "skip_the_epoch_check": 15,
    "ignore_who_leaves": 22,
    "blame_whoever_stands_on_broken_blocks": 15,
}  # of bugs that the first dozen seeds do not see

PLANTED = [
    (plant, play)
    for play, bugs in ((play_seed, BUGS), (play_broken_row, BROKEN_ROW_BUGS), (play_short_memory, SHORT_MEMORY_BUGS))
    for plant in bugs
]


@pytest.mark.parametrize(("plant", "play"), PLANTED, ids=lambda named: named.__name__)
def test_a_planted_bug_is_found(plant, play, monkeypatch):
    plant(monkeypatch)
    found = first_failure(play, LATE.get(plant.__name__, 1))
    assert found is not None, f"{SEEDS_MAX} seeds saw nothing wrong"
    print("found by seed", *found)
