"""A range on its way: whatever the order of the answers, the bytes leave in order and once, with few questions open."""

import random

import pytest

from hydra.protocol.faults import TheyBrokeTheRules
from hydra.protocol.range_window import RangeWindow
from hydra.protocol.store_lane import ChunkReply

FILE = bytes(range(251)) * 40


def window(offset, length, chunk_bytes=100, open_max=4):
    return RangeWindow("", "print", "file", offset, length, chunk_bytes=chunk_bytes, open_max=open_max)


def answer(ask):
    data = FILE[ask.offset : ask.offset + ask.length]
    return ChunkReply(number=ask.number, file_bytes=len(FILE), data=data)


@pytest.mark.parametrize("seed", range(200))
def test_any_order_of_answers_gives_the_range(seed):
    rng = random.Random(seed)
    offset = rng.randrange(len(FILE))
    length = rng.randrange(len(FILE) - offset + 1)
    made = window(offset, length, chunk_bytes=rng.randint(1, 999), open_max=rng.randint(1, 6))
    open_asks, told, asked = [], [], 0
    out = b""
    while not made.over:
        fresh = made.asks()
        asked += len(fresh)
        open_asks += fresh
        assert len(open_asks) <= made.open_max
        ask = open_asks.pop(rng.randrange(len(open_asks)))
        told.append(ask)
        out += b"".join(made.take(answer(ask)))
        if rng.random() < 0.2:
            assert made.take(answer(rng.choice(told))) == []  # twice is once
    assert out == FILE[offset : offset + length]
    assert asked == made.n_chunks and made.asks() == []


def test_an_early_chunk_counts_as_open():
    """Else one lost answer would let the rest of the file pile up here."""
    made = window(0, 1000, open_max=3)
    first, second, third = made.asks()
    assert made.take(answer(second)) == made.take(answer(third)) == []
    assert made.asks() == []
    assert len(made.take(answer(first))) == 3
    assert [ask.number for ask in made.asks()] == [3, 4, 5]


def test_nothing_is_over_at_once():
    made = window(5, 0)
    assert made.over and made.asks() == []


def test_what_was_not_asked_or_does_not_fit_is_refused():
    made = window(0, 250)
    first = made.asks()[0]
    with pytest.raises(TheyBrokeTheRules):
        made.take(ChunkReply(number=3, file_bytes=1000, data=b""))
    with pytest.raises(TheyBrokeTheRules):
        made.take(ChunkReply(number=first.number, file_bytes=1000, data=bytes(99)))
    made = window(0, 250)
    with pytest.raises(TheyBrokeTheRules):
        made.take(ChunkReply(number=made.asks()[0].number, file_bytes=99, data=bytes(100)))
