"""Many seeds: whatever breaks, every answer is the oracle's, and in the end nothing is held for anybody."""

from collections import Counter

import pytest

from tests.sample import n_seeds
from tests.sim.swarm import FAULT_KINDS, play_means, play_seed, plot_of

PARTS = 20
GIVES_UP = 27  # a seed in which a worker's thread is stuck
FOUND = (20, 32, 45, 48, 50, 58, 95, 216, 280, 312, 368, 406, 1170, 1259)  # seeds that once found a bug


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", range(PARTS))
def test_seeds(part):
    for seed in range(1 + part, 1 + n_seeds(), PARTS):
        play_means(seed)


@pytest.mark.parametrize("seed", FOUND)
def test_seeds_that_once_found_a_bug(seed):
    play_seed(seed)


def test_the_seeds_go_where_it_hurts():
    """A checker that never fires proves nothing: the first seeds see every kind of fault and what it leads to."""
    plots = [plot_of(seed) for seed in range(1, 61)]
    kinds = Counter(trouble.kind for plot in plots for trouble in plot.troubles)
    assert set(FAULT_KINDS) <= set(kinds), f"never seen: {set(FAULT_KINDS) - set(kinds)}"
    assert any(plot.poison for plot in plots)
    outcomes = [play_seed(seed) for seed in (*range(1, 16), GIVES_UP)]
    assert sum(outcome.replays for outcome in outcomes) > 20
    assert sum(outcome.stale_dropped for outcome in outcomes) > 2
    assert any("gives up" in line for outcome in outcomes for line in outcome.story)
    shapes = [plot.shape for plot in plots]
    assert {shape.workers for shape in shapes} == {1, 2, 3, 4} and {shape.engine.prefix_cache for shape in shapes} == {
        True,
        False,
    }
