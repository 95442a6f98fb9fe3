"""One request or one key beside others at the Broker: everybody is served, and nobody learns of another's prompt."""

import pytest

from hydra.actors.core.facts import FrontendLost
from hydra.protocol.batch import int32
from hydra.protocol.messages.generations import Close, OpenRefused, Tokens
from tests.unit.actors.test_broker import Table, mail, opening


def running(table):
    return [row.key.session for row in table.broker._models["m"].rows]


def crowd(table, first, count, **changes):
    """So many generations at once; those that were refused."""
    effects = [effect for n in range(count) for effect in table.says(opening(first + n, **changes))]
    return [refused.session for refused in mail(effects, OpenRefused)]


def test_beside_a_request_of_many_answers_another_one_begins_at_once():
    table = Table(max_running=16)
    crowd(table, 1, 40, request=1)
    assert running(table) == list(range(1, 15))
    table.says(opening(100, request=2))
    assert running(table)[-1] == 100


def test_a_row_that_ends_is_given_to_whoever_has_fewest():
    table = Table(max_running=16)
    crowd(table, 1, 40, request=1)
    crowd(table, 100, 3, request=2)
    assert running(table)[14:] == [100]
    for session in (1, 2, 3, 4):
        table.says(Close(session=session, attempt=0))
    assert running(table)[-3:] == [101, 102, 15], "in turn, and not all to the first"


def test_a_request_of_many_answers_leaves_places_in_the_queue():
    table = Table(up=False, max_waiting=64)
    assert crowd(table, 1, 80, request=1) == list(range(57, 81))
    assert crowd(table, 100, 1, request=2) == []


def test_a_request_of_many_answers_leaves_blocks():
    table = Table(max_running=16)
    table.fall(death=False)
    table.rise(kv_blocks=32, block_size=4)
    for session in range(1, 17):
        table.says(opening(session, request=1, history=int32([session] * 16), prompt_tokens=16))
    assert running(table) == [1, 2, 3, 4, 5], "of five blocks each; four are kept for others"
    table.says(opening(100, request=2))
    assert running(table)[-1] == 100


def test_rows_are_counted_as_they_come_and_go():
    table = Table(max_running=4)
    queue = table.broker._models["m"].waiting
    crowd(table, 1, 6, request=1, max_tokens=1)
    crowd(table, 10, 2, request=2)
    for _ in range(6):
        table.answer()
        queue.check()
        assert set(running(table)) == {key.session for key in queue._running}
    assert not {1, 2, 3} & set(running(table)) and {10, 11} <= set(running(table))
    table.tell(FrontendLost(peer="front-1"))
    assert not queue._requests and not queue._owners and not queue._running


def test_a_route_that_falls_frees_all_rows():
    table = Table(max_running=4)
    crowd(table, 1, 4)
    table.fall(death=False)
    assert not table.broker._models["m"].waiting._running
    crowd(table, 10, 4)
    table.rise()
    assert running(table) == [10, 11, 12, 13]


@pytest.mark.parametrize(("share_prefixes", "own", "others"), [("key", 8, 0), ("all", 8, 8)])
def test_cached_tokens_tell_of_ones_own_prompts(share_prefixes, own, others):
    table = Table(share_prefixes=share_prefixes)
    for session, owner, cached in ((1, "a", 0), (2, "a", own), (3, "b", others)):
        table.says(opening(session, owner=owner, history=int32(range(20, 30)), prompt_tokens=10, max_tokens=1))
        (tokens,) = mail(table.answer(), Tokens)
        assert (tokens.session.tolist(), tokens.cached.tolist()) == ([session], [cached])
        while table.steps:
            table.answer()
