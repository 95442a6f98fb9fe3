"""Intervals against the plain set of integers that they stand for."""

from hypothesis import given
from hypothesis import strategies as st

from hydra.store.files.spans import Spans, cut

PAIRS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)).map(lambda pair: (pair[0], sum(pair))), max_size=12)


@given(PAIRS, st.integers(0, 70), st.integers(0, 30))
def test_spans_are_a_set_of_integers(pairs, start, length):
    spans, plain = Spans.of(pairs), {i for a, b in pairs for i in range(a, b)}
    end = start + length
    gaps = spans.missing(start, end)
    assert [i for a, b in gaps for i in range(a, b)] == [i for i in range(start, end) if i not in plain]
    assert spans.overlap(start, end) == len(plain & set(range(start, end)))
    assert spans.total() == len(plain)
    edges = [edge for span in spans for edge in span]
    assert edges == sorted(set(edges)), "neighbours are joined"


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 9))
def test_pieces_tile_what_was_cut(start, length, step):
    pieces = list(cut((start, start + length), step))
    assert [i for a, b in pieces for i in range(a, b)] == list(range(start, start + length))
    assert all(0 < b - a <= step for a, b in pieces)
