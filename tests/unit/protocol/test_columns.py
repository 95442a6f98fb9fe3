"""A column that is added is one line: its size, its bytes and its checks follow from it."""

import attrs
import numpy as np
import pytest

from hydra.protocol.batch import BATCH_COLUMNS, Batch, column, int32
from hydra.protocol.columns import FLOAT32, ColumnTable


@attrs.define
class Grown(Batch):
    """A batch of next year: drafted tokens, an adapter per row, a weight per token, and blocks that are copied."""

    n_drafts = column(per="row")
    drafts = column(counts="n_drafts", below="vocabulary", items_max=4)
    adapter = column(per="row", high=7)
    weight = column(np.zeros(0, np.float32), per="tokens", dtype=FLOAT32, low=None)
    copied = column(below="pool's blocks")


GROWN = ColumnTable(Grown)
ROWS = {
    "row": [7, 8], "attempt": [0, 0], "position": [0, 5], "length": [2, 1], "sample": [0, 1], "new_blocks": [1, 0],
    "tokens": [4, 5, 6], "blocks": [3], "closed": [], "n_drafts": [0, 2], "drafts": [9, 1], "adapter": [0, 7],
    "copied": [2, 3],
}  # fmt: skip
WEIGHTS = np.array([0.5, -1.5, np.nan], np.float32)


def grown(**changes):
    columns = {name: int32(numbers) for name, numbers in (ROWS | changes).items() if name != "weight"}
    return Grown(**columns, weight=changes.get("weight", WEIGHTS))


def read(data, counts):
    return Grown(*GROWN.cut(data, 0, GROWN.layout(counts)))


def test_each_new_line_travels_behind_the_old_ones():
    batch = grown()
    counts, data = GROWN.counts(batch), GROWN.join(batch)
    assert counts == (2, 3, 1, 0, 2, 2), "rows, tokens, blocks, closed, and of the new ones the drafts and the copied"
    assert data.startswith(BATCH_COLUMNS.join(batch)) and GROWN.n_counts == BATCH_COLUMNS.n_counts + 2
    back = read(data, counts)
    for line in GROWN.columns:
        before, after = getattr(batch, line.name), getattr(back, line.name)
        assert after.dtype == line.dtype and np.array_equal(before, after, equal_nan=line.dtype == FLOAT32), line.name


@pytest.mark.parametrize("padding", [0, 300], ids=["few", "many"])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_drafts": [0, 1]}, "drafts and the counts of their rows"),
        ({"drafts": [9, -1]}, "drafts below 0"),
        ({"adapter": [0, 8]}, "adapter below None or above 7"),
        ({"drafts": [1] * 5, "n_drafts": [0, 5]}, "5 in drafts, where there are at most 4"),
        ({"length": [3, 0]}, "tokens and the counts of their rows"),
        ({"position": [0, -1]}, "position below 0"),
    ],
)
def test_what_a_line_forbids_is_refused(changes, reason, padding):
    batch = grown(closed=[1] * padding, **changes)
    with pytest.raises(ValueError, match=reason):
        read(GROWN.join(batch), GROWN.counts(batch))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"drafts": [9, 10]}, "drafts beyond the vocabulary"),
        ({"tokens": [4, 10, 6]}, "tokens beyond the vocabulary"),
        ({"copied": [2, 4]}, "copied beyond the pool's blocks"),
        ({"position": [0, 64]}, ""),
    ],
)
def test_what_names_something_is_checked_by_whoever_knows_how_many_there_are(changes, reason):
    assert GROWN.beyond(grown(**changes), {"vocabulary": 10, "pool's blocks": 4}) == reason


def test_our_own_mistakes_are_bugs():
    with pytest.raises(TypeError, match="weight of float64"):
        GROWN.join(grown(weight=np.zeros(3)))
    with pytest.raises(AssertionError, match="later"):
        ColumnTable(attrs.make_class("Twisted", {"drafts": column(counts="n_drafts"), "n_drafts": column()}))


def test_columns_in_pieces_are_joined_as_others_are():
    spread = np.arange(6, dtype=np.int32).reshape(3, 2)[:, 0]
    assert BATCH_COLUMNS.join(Batch(tokens=spread)) == int32([0, 2, 4]).tobytes()
