"""Blocks are never lost and never lie: what a shared block holds is what every sharer's prompt says."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydra.actors.kv_ledger import KvLedger

PROMPT = tuple(range(100, 110))


def opened(ledger, row, prompt, *, name=True):
    cached = ledger.open(row, prompt)
    assert ledger.grow(row, len(prompt)) is not None
    if name:
        ledger.name_prompt(row, prompt)
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


def test_a_row_opens_once():
    ledger = KvLedger(8, 4)
    ledger.open(1, PROMPT)
    with pytest.raises(AssertionError, match="open already"):
        ledger.open(1, PROMPT)


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
@given(STEPS, st.integers(1, 12))
def test_whatever_rows_do_the_blocks_add_up_and_tell_the_truth(steps, blocks):
    ledger = KvLedger(blocks, 2)
    rows = {}
    content = {}  # block -> the whole prefix that was computed into it, as a stage would see it
    for kind, row, ids in steps:
        if kind == "open" and row not in rows:
            cached = ledger.open(row, ids)
            assert cached < len(ids)
            for i, block in enumerate(ledger.table(row)):
                assert content[block] == ids[: 2 * i + 2], "a block was shared that holds something else"
            if ledger.grow(row, len(ids)) is None:
                ledger.close(row)
            else:
                rows[row] = len(ids)
                for i, block in enumerate(ledger.table(row)):
                    content[block] = ids[: 2 * i + 2]
                ledger.name_prompt(row, ids)
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
