"""How large a step may be after steps that found no memory."""

from hydra.actors.scheduling.step_bound import GROW_AFTER_MAX_S, GROW_AFTER_S, StepBound


def test_nothing_is_bounded_until_a_step_fails_and_each_failure_halves():
    bound = StepBound()
    assert bound.at(1e6) is None
    seen = []
    for tokens in (100, 50, 25, 12, 6, 3, 1, 1):
        bound.fail(tokens, 0.0)
        seen.append(bound.at(0.0))
    assert seen == [50, 25, 12, 6, 3, 1, 1, 1]


def test_larger_steps_that_were_under_way_do_not_raise_it():
    bound = StepBound()
    for tokens in (512, 512, 40, 512):
        bound.fail(tokens, 0.0)
    assert bound.at(0.0) == 20


def test_it_doubles_after_a_while_and_ends_where_it_began():
    bound = StepBound()
    bound.fail(40, 0.0)
    bound.fail(20, 0.0)
    times = [n * GROW_AFTER_S for n in range(4)]
    assert [bound.at(time_s) for time_s in times] == [10, 20, 40, None]


def test_it_also_grows_while_nobody_asks():
    bound = StepBound()
    bound.fail(100, 0.0)
    bound.fail(12, 0.0)
    assert bound.at(2.5 * GROW_AFTER_S) == 24 and bound.at(3 * GROW_AFTER_S) == 48


def test_a_shortage_that_stays_is_met_ever_more_seldom():
    bound, now_s, failures = StepBound(), 0.0, 0
    bound.fail(8, now_s)
    while now_s < 100_000:
        now_s += 1.0
        if (bound.at(now_s) or 9) > 4:  # the device has room for four
            bound.fail(bound.at(now_s) or 9, now_s)
            failures += 1
    assert failures < 40, f"{failures} steps failed in a day"
    assert bound._grow_after_s == GROW_AFTER_MAX_S
