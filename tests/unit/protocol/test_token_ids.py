"""Token ids: what several hold cannot be written to, and what grows never moves under those who look at it."""

import random

import numpy as np
import pytest

from hydra.protocol.batch import GrowingIds, int32, token_ids


def test_ids_are_one_read_only_column_and_are_not_copied_again():
    ids = token_ids([5, 6, 7])
    assert ids.dtype == np.int32 and not ids.flags.writeable
    assert token_ids(ids) is ids
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 1


def test_a_column_of_its_own_stays_writable_to_its_maker_alone():
    mine = int32([1, 2])
    theirs = token_ids(mine)
    assert np.shares_memory(mine, theirs) and mine.flags.writeable and not theirs.flags.writeable


def test_ids_grow_as_a_list_does():
    rng = random.Random(3)
    ids, expected = GrowingIds(token_ids([1, 2, 3])), [1, 2, 3]
    for _ in range(500):
        more = rng.choices(range(1000), k=rng.choice((0, 1, 1, 1, 40)))
        if len(more) == 1:
            ids.append(more[0])
        else:
            ids.extend(int32(more))
        expected += more
        assert len(ids) == len(expected)
    assert ids.column.tolist() == expected and ids.column.dtype == np.int32


@pytest.mark.parametrize("first", [int32([]), int32([1, 2, 3]), token_ids([1, 2, 3])])
def test_growing_writes_to_nothing_that_was_given_out(first):
    before = first.tolist()
    ids = GrowingIds(first)
    seen = [ids.column]
    for token in range(100, 140):
        ids.append(token)
        seen.append(ids.column)
    assert first.tolist() == before
    assert [column.tolist() for column in seen] == [[*before, *range(100, 100 + n)] for n in range(41)]


def test_before_it_grows_it_shares_what_it_begins_with():
    prompt = token_ids(range(1000))
    assert np.shares_memory(GrowingIds(prompt).column, prompt)
