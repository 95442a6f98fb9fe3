"""What a step should take: never much less than it will, and soon right again after an outlier."""

import pytest

from hydra.actors.scheduling.step_time import StepTime

LEASE = 8.0  # times the prediction: a step that takes longer is taken for lost


def measured(*steps: tuple[float, int]) -> StepTime:
    """(seconds, tokens) of steps for one row."""
    time = StepTime()
    for took_s, tokens in steps:
        time.measure(took_s, tokens, 1)
    return time


def test_nothing_is_predicted_before_anything_was_measured():
    assert StepTime().predicted_s(1) is None
    assert measured((0.5, 1)).predicted_s(1) == 0.5
    assert measured((0.5, 40)).predicted_s(1) > 0.5, "a prefill alone says something too"


@pytest.mark.parametrize("fixed_s", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("token_s", [0.0005, 0.02])
@pytest.mark.parametrize("tokens", [2, 3, 20, 500])
def test_a_long_prefill_is_within_its_lease_after_short_ones(fixed_s, token_s, tokens):
    """Also where a step costs nothing but its tokens, so that short ones say the least."""
    time = measured((fixed_s + token_s, 1), *[(fixed_s + token_s * tokens, tokens)] * 5)
    for long in (tokens, 100, 4096):
        predicted_s = time.predicted_s(long)
        assert predicted_s is not None and fixed_s + token_s * long <= LEASE * predicted_s * 1.2


def test_a_slow_short_prefill_does_not_make_a_long_one_wait_for_minutes():
    """Half a second for three tokens, while the machine did something else, and then as ever."""
    slow = measured((0.02, 1), (0.5, 3), (0.2, 64))
    assert LEASE * slow.predicted_s(200) < 20.0
    recovered = measured((0.02, 1), (0.5, 3), *[(0.2, 64)] * 10)
    assert LEASE * recovered.predicted_s(200) < 6.0


def test_a_first_prefill_may_take_half_a_step_for_each_token():
    """Of weights of 4 bits a prefill is hardly cheaper by the token than a step of one."""
    assert LEASE * measured((0.05, 1)).predicted_s(64) > 64 * 0.05


def test_decode_steps_change_what_a_step_costs_little_by_little():
    time = measured((0.1, 1), (0.2, 1))
    assert time.predicted_s(1) == pytest.approx(0.12)
