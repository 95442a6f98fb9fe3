"""Prompts are computed in the order in which they came, but none holds up the others for longer than a turn."""

import pytest

from hydra.actors.scheduling.prefill_turns import TURN_TOKENS
from hydra.actors.scheduling.scheduler import BATCH_TOKENS_AUTO
from tests.unit.actors.test_scheduler import add, answer, engine, sent

TURN_STEPS = TURN_TOKENS // BATCH_TOKENS_AUTO


class Drive:
    """A route whose steps come home one by one."""

    def __init__(self, **facts):
        self.at = engine(stages=1, blocks=100_000, **facts)
        self.under_way = []

    def step(self):
        self.under_way += sent(self.at)
        answer(self.at, *self.under_way.pop(0))

    def steps_until(self, row, most=200):
        """How many steps come home until the row has its first token."""
        for number in range(most):
            if row.generated:
                return number
            self.step()
        raise AssertionError("it was not computed")


@pytest.mark.parametrize("prompts", [1, 16])
def test_a_long_prompt_or_many_hold_up_a_later_request_for_a_turn(prompts):
    drive = Drive()
    for number in range(prompts):
        add(drive.at, 1 + number, 20_000, request=1)
    drive.step()
    short = add(drive.at, 100, 50, request=2)
    assert drive.steps_until(short) <= len(drive.under_way) + TURN_STEPS + 1


def test_many_requests_of_one_key_hold_up_another_key_for_a_turn():
    drive = Drive()
    for number in range(50):
        add(drive.at, 1 + number, 5_000, request=1 + number, owner="a")
    drive.step()
    short = add(drive.at, 100, 50, request=100, owner="b")
    assert drive.steps_until(short) <= len(drive.under_way) + TURN_STEPS + 1


def test_a_long_prompt_is_not_held_up_for_ever_by_short_ones():
    drive = Drive()
    long = add(drive.at, 1, 5_000, request=1)
    for number in range(2, 60):
        for session in (number * 10, number * 10 + 1):
            add(drive.at, session, 300, request=session, max_tokens=1)
        drive.step()
        if long.generated:
            break
    assert long.generated


def test_prompts_of_ordinary_length_are_through_in_the_order_in_which_they_came():
    drive = Drive(max_batch_tokens=BATCH_TOKENS_AUTO)
    rows = [add(drive.at, number, 400) for number in range(1, 7)]
    for number, row in enumerate(rows):
        drive.steps_until(row)
        assert not any(later.generated for later in rows[number + 2 :]), "but for the one that shares its last step"


def test_whoever_leaves_in_its_turn_leaves_nothing():
    at = engine(stages=1, blocks=10_000)
    for number in range(1, 4):
        add(at, number, 3_000, owner="a" if number % 2 else "b")
    sent(at)
    for row in list(at.rows.values()):
        at.remove(row)
        at.remove(row)
    assert len(at._prefill) == 0 and at._prefill.rows() == [] and not at._prefill._owners
