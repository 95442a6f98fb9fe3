"""A generation's memory: nothing shown is lost, nothing is shown twice, and the end is always honest."""

import tracemalloc

import attrs
import numpy as np
import pytest

from hydra.actors.client import GenerateRequest
from hydra.actors.core.facts import Undelivered
from hydra.actors.core.machine import CancelTimer, Send, SetTimer, TimerFired
from hydra.actors.core.names import BROKER
from hydra.actors.core.suspicion import SOLITARY_TOKENS
from hydra.actors.sessions.session import (
    ORPHANED_AT_ONCE,
    ORPHANED_MAX,
    UNANSWERED_S,
    Begin,
    Fail,
    Orphaned,
    Session,
    Stop,
)
from hydra.actors.sessions.sessions import Sessions, Show, StartGeneration
from hydra.protocol.ids import SessionId
from hydra.protocol.messages.generations import (
    Close,
    Open,
    OpenRefused,
    Reopen,
)
from hydra.protocol.refusal import Refusal
from hydra.protocol.sampled_token import SampledToken
from hydra.protocol.sampling import GREEDY

PROMPT = (11, 12, 13)


def session(**changes):
    one = Session(session=7, model_id="m", prompt=PROMPT, max_tokens=100, params=GREEDY, stop_ids=(2,), max_replays=5)
    return attrs.evolve(one, **changes)


def begun(**changes):
    one = session(**changes)
    one.handle(Begin(), 0.0)
    return one


def token(one, value, *, finish=None, attempt=None, position=None):
    return one.handle(
        SampledToken(
            attempt=one.attempt if attempt is None else attempt,
            position=one.position if position is None else position,
            token=value,
            finish=finish,
        ),
        1.0,
    )


def die(one):
    return one.handle(Reopen(session=7, attempt=one.attempt, why="epoch", death=True), 2.0)


def opens(effects):
    return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Open)]


def shown(effects):
    return [e.token for e in effects if isinstance(e, SampledToken)]


def failure(effects):
    return next(e.refusal for e in effects if isinstance(e, Fail))


def test_it_opens_with_its_prompt():
    effects = session().handle(Begin(), 3.0)
    (opening,) = opens(effects)
    assert effects[0].to == BROKER and SetTimer("unanswered", 3.0 + UNANSWERED_S) in effects
    assert opening.history.tolist() == list(PROMPT) and opening.prompt_tokens == 3
    assert (opening.attempt, opening.deaths, opening.max_tokens, opening.stop_ids) == (0, 0, 100, (2,))


def test_tokens_are_shown_in_order():
    one = begun()
    assert shown(token(one, 5)) == [5] and shown(token(one, 6)) == [6]
    assert one.emitted.column.tolist() == [5, 6]


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_the_last_token_says_why(finish):
    one = begun()
    (last, cancel) = token(one, 9, finish=finish)
    assert last.finish == finish and cancel == CancelTimer("unanswered") and one.done
    assert token(one, 10) == []


def test_a_broken_route_is_replayed_with_everything_shown():
    one = begun()
    token(one, 5)
    token(one, 6)
    (opening,) = opens(one.handle(Reopen(session=7, attempt=0, why="epoch", death=False), 2.0))
    assert opening.history.tolist() == [*PROMPT, 5, 6]
    assert (opening.attempt, opening.prompt_tokens, opening.deaths) == (1, 3, 0)
    assert shown(token(one, 7)) == [7]


def test_words_of_the_former_attempt_are_echoes():
    one = begun()
    token(one, 5)
    one.handle(Reopen(session=7, attempt=0, why="preempted"), 2.0)
    assert token(one, 6, attempt=0) == []
    assert one.handle(Reopen(session=7, attempt=0, why="epoch", death=True), 2.0) == []
    refused = Refusal(code="queue_full", message="full")
    assert one.handle(OpenRefused(session=7, attempt=0, refusal=refused), 2.0) == []
    assert one.attempt == 1 and one.deaths == 0 and not one.done


def test_a_token_told_twice_is_shown_once():
    one = begun()
    token(one, 5, position=3)
    assert token(one, 5, position=3) == [] and one.emitted.column.tolist() == [5]


def test_a_gap_is_replayed_and_never_shown():
    one = begun()
    token(one, 5)
    effects = token(one, 8, position=one.position + 1)
    assert shown(effects) == [] and opens(effects)[0].history.tolist() == [*PROMPT, 5]
    assert one.attempt == 1


def test_in_flight_at_two_deaths_it_says_so_and_at_a_third_it_ends():
    one = begun()
    assert opens(die(one))[0].deaths == 1
    assert opens(die(one))[0].deaths == 2
    effects = die(one)
    assert failure(effects).code == "replay_limit" and not opens(effects) and one.done


def test_eight_tokens_past_its_replay_it_is_no_longer_suspected():
    one = begun()
    die(one)
    die(one)
    for value in range(SOLITARY_TOKENS - 1):
        token(one, 20 + value)
    assert one.deaths == 2
    token(one, 40)
    assert one.deaths == 0
    assert opens(die(one))[0].deaths == 1


def test_slow_bad_luck_ends_at_max_replays():
    one = begun(max_replays=3)
    for _ in range(3):
        assert opens(die(one))
        for value in range(SOLITARY_TOKENS):
            token(one, value + 3)
    assert failure(die(one)).code == "replay_limit"


def test_replays_that_nobody_died_for_are_free():
    one = begun(max_replays=2)
    for _ in range(20):
        assert opens(one.handle(Reopen(session=7, attempt=one.attempt, why="preempted"), 2.0))
    assert one.attempt == 20 and one.deaths == 0


def test_a_new_coordinator_gets_the_whole_story():
    one = begun()
    token(one, 5)
    (opening,) = opens(one.handle(Orphaned(), 2.0))
    assert (opening.attempt, opening.history.tolist(), opening.deaths) == (1, [*PROMPT, 5], 0)


def test_whoever_is_orphaned_over_and_over_without_a_token_waits_longer_and_at_last_ends():
    one, waits = begun(), []
    for _ in range(ORPHANED_MAX):
        effects = one.handle(Orphaned(), 10.0)
        if not opens(effects):
            (timer,) = (effect for effect in effects if isinstance(effect, SetTimer))
            waits.append(timer.at_s - 10.0)
            (opening,) = opens(one.handle(TimerFired(timer.key), timer.at_s))
            assert opening.attempt == one.attempt
    assert len(waits) == ORPHANED_MAX - ORPHANED_AT_ONCE and waits == sorted(waits)
    assert 0.5 <= waits[0] <= 1.0 and 8.0 <= waits[-1] <= 16.0
    effects = one.handle(Orphaned(), 10.0)
    assert failure(effects).code == "replay_limit" and one.done


def test_a_token_between_makes_being_orphaned_harmless():
    one = begun()
    for value in range(2 * ORPHANED_MAX):
        assert opens(one.handle(Orphaned(), 2.0))
        token(one, 100 + value)


def test_the_sessions_of_one_frontend_do_not_all_come_back_at_once():
    times = set()
    for number in range(16):
        one = begun(session=number)
        for _ in range(ORPHANED_AT_ONCE + 1):
            effects = one.handle(Orphaned(), 0.0)
        times.update(effect.at_s for effect in effects if isinstance(effect, SetTimer))
    assert len(times) == 16


def test_an_open_that_is_too_large_fails_its_own_session_only():
    sessions = Sessions(max_replays=5)
    request = GenerateRequest(model_id="m", prompt=PROMPT, max_tokens=5, params=GREEDY, stop_ids=())
    first, second = (sessions.handle(StartGeneration(SessionId(number), request), 0.0)[0] for number in (1, 2))
    refusal = Refusal(code="invalid_value", message="an Open of 5000000 bytes")
    effects = sessions.handle(Undelivered(first.to, first.message, refusal), 1.0)
    (show,) = [effect for effect in effects if isinstance(effect, Show)]
    assert show.session == 1 and show.shown.refusal.code == "invalid_value"
    assert "too large" in show.shown.refusal.message and len(sessions) == 1
    close = Close(session=second.message.session, attempt=0)
    assert sessions.handle(Undelivered(BROKER, close, refusal), 1.0) == [] and len(sessions) == 1


def test_an_unanswered_open_is_said_again_word_for_word():
    one = session()
    (first,) = opens(one.handle(Begin(), 0.0))
    effects = one.handle(TimerFired("unanswered"), 30.0)
    assert opens(effects) == [first] and SetTimer("unanswered", 60.0) in effects


def test_an_answered_open_is_not():
    one = begun()
    token(one, 5)
    assert one.handle(TimerFired("unanswered"), 30.0) == []


def test_a_refusal_is_the_end():
    one = begun()
    refused = Refusal(code="queue_full", message="full", retry_after_s=1.0)
    assert failure(one.handle(OpenRefused(session=7, attempt=0, refusal=refused), 1.0)) == refused
    assert one.done


def test_a_reader_who_leaves_frees_the_row_at_its_present_attempt():
    one = begun()
    die(one)
    effects = one.handle(Stop(), 3.0)
    assert Send(BROKER, Close(session=7, attempt=1)) in effects and one.done
    assert one.handle(Orphaned(), 4.0) == []


def test_the_answers_to_a_prompt_keep_it_once():
    """128 answers to a long prompt would otherwise hold as many copies of it, in Python's integers."""
    ids = np.full(100_000, 300, np.int32)
    sessions = Sessions(max_replays=5)
    tracemalloc.start()
    for number in range(32):
        request = GenerateRequest(model_id="m", prompt=ids, max_tokens=5, params=GREEDY, stop_ids=())
        for effect in sessions.handle(StartGeneration(SessionId(number), request), 0.0):
            assert not isinstance(effect, Send) or np.array_equal(effect.message.history, ids)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(sessions) == 32 and kept < 2 * ids.nbytes
