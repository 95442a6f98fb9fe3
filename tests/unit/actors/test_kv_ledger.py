"""Blocks are never lost and never lie: what a shared block holds is what every sharer's prompt says."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydra.actors.scheduling.kv_ledger import KvLedger
from hydra.protocol.batch import int32

PROMPT = int32(range(100, 110))


def opened(ledger, row, prompt, *, name=True):
    ids = int32(prompt)
    cached = ledger.open(row, ids)
    assert ledger.grow(row, len(ids)) is not None
    if name:
        ledger.name_prompt(row, ids)
    ledger.check()
    return cached


def test_a_row_takes_what_it_needs_and_gives_it_back():
    ledger = KvLedger(8, 4)
    assert opened(ledger, 1, PROMPT) == 0
    assert len(ledger.table(1)) == 3 and ledger.blocks_free == 5
    assert ledger.grow(1, 12) == [] and len(ledger.grow(1, 13)) == 1
    ledger.close(1)
    ledger.check()
    assert ledger.blocks_free == 8 and ledger.table(1) == ()


def test_a_second_row_shares_the_full_blocks_of_the_same_prompt():
    ledger = KvLedger(8, 4)
    opened(ledger, 1, PROMPT)
    assert opened(ledger, 2, PROMPT) == 8
    assert ledger.table(1)[:2] == ledger.table(2)[:2] and ledger.table(1)[2] != ledger.table(2)[2]
    assert ledger.blocks_free == 4


def test_one_token_is_always_left_to_compute():
    ledger = KvLedger(8, 4)
    opened(ledger, 1, PROMPT[:8])
    assert opened(ledger, 2, PROMPT[:8]) == 4


def test_a_block_is_shared_only_where_all_before_it_is_equal_too():
    ledger = KvLedger(16, 4)
    opened(ledger, 1, (1, 2, 3, 4, 5, 6, 7, 8, 9))
    assert opened(ledger, 2, (9, 9, 9, 9, 5, 6, 7, 8, 9)) == 0
    assert opened(ledger, 3, (1, 2, 3, 4, 9, 9, 9, 9, 9)) == 4


def test_a_prompt_that_was_never_computed_is_not_shared():
    ledger = KvLedger(8, 4)
    opened(ledger, 1, PROMPT, name=False)
    assert opened(ledger, 2, PROMPT) == 0


def test_kept_blocks_serve_again_after_their_row_is_gone():
    ledger = KvLedger(8, 4)
    opened(ledger, 1, PROMPT)
    first = ledger.table(1)[:2]
    ledger.close(1)
    assert opened(ledger, 2, PROMPT) == 8 and ledger.table(2)[:2] == first


@pytest.mark.parametrize("still_held", [False, True])
def test_what_is_no_longer_named_is_shared_by_nobody_and_free_once_nobody_holds_it(still_held):
    ledger = KvLedger(8, 4)
    opened(ledger, 1, PROMPT)
    blocks = ledger.table(1)
    if not still_held:
        ledger.close(1)
    ledger.unname(blocks)
    ledger.check()
    assert opened(ledger, 2, PROMPT) == 0
    for row in (1, 2):
        ledger.close(row)
        ledger.check()
    assert ledger.blocks_free == 8 and opened(ledger, 3, PROMPT) == 8


def test_the_longest_kept_goes_first_when_room_is_needed_and_its_name_with_it():
    ledger = KvLedger(4, 4)
    opened(ledger, 1, (1, 1, 1, 1, 0))
    ledger.close(1)
    opened(ledger, 2, (2, 2, 2, 2, 0))
    ledger.close(2)
    assert opened(ledger, 3, tuple(range(12))) == 0  # three blocks: two empty ones, and the oldest kept
    ledger.close(3)
    assert opened(ledger, 4, (1, 1, 1, 1, 0)) == 0
    ledger.close(4)


def test_too_few_blocks_change_nothing():
    ledger = KvLedger(2, 4)
    opened(ledger, 1, (1, 2, 3))
    assert ledger.grow(1, 100) is None
    ledger.check()
    assert len(ledger.table(1)) == 1 and ledger.blocks_free == 1


def test_without_a_prefix_cache_nothing_is_shared():
    ledger = KvLedger(8, 4, prefix_cache=False)
    opened(ledger, 1, PROMPT)
    assert opened(ledger, 2, PROMPT) == 0


def test_sharers_have_prefixes_of_their_own():
    ledger = KvLedger(8, 4)
    for row, sharers, cached in ((1, "a", 0), (2, "b", 0), (3, "a", 4), (4, "", 0)):
        assert ledger.open(row, PROMPT[:5], sharers=sharers) == cached
        assert ledger.grow(row, 5) is not None
        ledger.name_prompt(row, PROMPT[:5], sharers)
    ledger.check()


def test_a_row_opens_once():
    ledger = KvLedger(8, 4)
    ledger.open(1, PROMPT)
    with pytest.raises(AssertionError, match="open already"):
        ledger.open(1, PROMPT)


def in_one_run(table):
    return table == tuple(range(table[0], table[0] + len(table)))


def test_rows_that_grow_side_by_side_stay_in_one_run_each():
    ledger = KvLedger(64, 4)
    rows = range(6)
    for row in rows:
        ledger.open(row, int32([row] * 10), 40)
        ledger.grow(row, 10)
    for tokens in range(11, 41):
        for row in rows:
            ledger.grow(row, tokens)
    ledger.check()
    assert all(in_one_run(ledger.table(row)) and len(ledger.table(row)) == 10 for row in rows)
    for row in rows:
        ledger.close(row)
    ledger.open(9, int32([1, 2]), 4)
    assert ledger.grow(9, 2) == [0], "the lowest comes first: memory once touched is touched again"


def test_what_is_promised_to_one_is_given_to_another_before_anybody_waits():
    ledger = KvLedger(16, 4, prefix_cache=False)
    for row in range(16):
        ledger.open(row, int32([row]), 1000)
        assert len(ledger.grow(row, 1)) == 1
        ledger.check()
    assert ledger.blocks_free == 0 and ledger.grow(3, 5) is None


def test_a_promise_ends_with_its_row():
    ledger = KvLedger(32, 4, prefix_cache=False)
    ledger.open(1, int32([1]), 32)
    ledger.grow(1, 4)
    ledger.open(2, int32([2]), 4)
    (beyond,) = ledger.grow(2, 4)
    assert beyond == 8, "the first eight are another's"
    ledger.close(1)
    ledger.open(3, int32([3]), 4)
    assert ledger.grow(3, 4) == [0] and ledger.grow(3, 8) == [1]


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_nearly_all_rows_are_in_one_run_in_a_pool_that_has_been_used_for_long(prefix_cache):
    rng = random.Random(7)
    ledger = KvLedger(2000, 16, prefix_cache)
    rows, told, whole = {}, 0, 0  # row -> (tokens, end)
    for number in range(20_000):
        if len(rows) < 24:
            prompt = rng.randrange(20, 400)
            rows[number] = (prompt, prompt + rng.randrange(20, 300))
            ids = int32(rng.choices(range(1000), k=prompt))
            ledger.open(number, ids, prompt + 300)
            assert ledger.grow(number, prompt) is not None
            ledger.name_prompt(number, ids)
        row = rng.choice(list(rows))
        tokens, end = rows[row]
        rows[row] = (min(end, tokens + 16), end)
        assert ledger.grow(row, rows[row][0]) is not None
        if rows[row][0] == end:
            told += 1
            whole += in_one_run(ledger.table(row))
            ledger.close(row)
            del rows[row]
    ledger.check()
    assert whole > 0.9 * told > 1000, f"{whole} of {told}"


# few tokens and short prompts, so that prefixes meet often
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["open", "grow", "close"]),
        st.integers(0, 5),
        st.lists(st.integers(0, 1), min_size=1, max_size=9),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.integers(1, 12), st.integers(0, 30))
def test_whatever_rows_do_the_blocks_add_up_and_tell_the_truth(steps, blocks, likely):
    ledger = KvLedger(blocks, 2)
    rows = {}
    content = {}  # block -> the whole prefix that was computed into it, as a stage would see it
    for kind, row, ids in steps:
        if kind == "open" and row not in rows:
            cached = ledger.open(row, int32(ids), likely)
            assert cached < len(ids)
            for i, block in enumerate(ledger.table(row)):
                assert content[block] == ids[: 2 * i + 2], "a block was shared that holds something else"
            if ledger.grow(row, len(ids)) is None:
                ledger.close(row)
            else:
                rows[row] = len(ids)
                for i, block in enumerate(ledger.table(row)):
                    content[block] = ids[: 2 * i + 2]
                ledger.name_prompt(row, int32(ids))
        elif kind == "grow" and row in rows:
            before = ledger.table(row)
            fresh = ledger.grow(row, rows[row] + len(ids))
            if fresh is None:
                assert ledger.table(row) == before
            else:
                rows[row] += len(ids)
                others = {block for other in rows if other != row for block in ledger.table(other)}
                assert not others & set(fresh), "a fresh block already belonged to somebody"
                content.update((block, None) for block in fresh)
                assert len(ledger.table(row)) >= ledger.blocks_for(rows[row])
        elif kind == "close":
            ledger.close(row)
            rows.pop(row, None)
        ledger.check()
    for row in list(rows):
        ledger.close(row)
    ledger.check()
    assert ledger.blocks_free == blocks
