"""The fence at the door of the arithmetic, step by step."""

import attrs
import pytest

from hydra.actors.stage.stage_line import Drop, Fence, FenceBoard, StageLine
from hydra.actors.stage.step_limits import StepLimits
from hydra.protocol.batch import Batch, RowOpening, Run, Step, int32
from hydra.protocol.blob import Blob
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Epoch
from hydra.protocol.sampling import GREEDY, SamplingParams

OLD, NOW, LATER = Epoch(1, 1), Epoch(1, 2), Epoch(2, 1)


def line(epoch=NOW, *, is_open=True, limits=None):
    board = FenceBoard()
    there = Endpoint("next")
    board.publish(Fence(route=1, epoch=epoch, open=is_open, last=True, next_addr=there, credits=3, limits=limits))
    return StageLine(board)


def rows(*parts):
    """(row, position, tokens, new blocks) each."""
    return {
        "row": int32([row for row, _, _, _ in parts]),
        "attempt": int32([0 for _ in parts]),
        "position": int32([position for _, position, _, _ in parts]),
        "length": int32([len(tokens) for _, _, tokens, _ in parts]),
        "sample": int32([1 for _ in parts]),
        "new_blocks": int32([len(blocks) for _, _, _, blocks in parts]),
        "tokens": int32([token for _, _, tokens, _ in parts for token in tokens]),
        "blocks": int32([block for _, _, _, blocks in parts for block in blocks]),
    }


def opens(row, **changes):
    return attrs.evolve(RowOpening(row=row, attempt=0, params=GREEDY, prompt_tokens=3), **changes)


def step(number, *parts, epoch=NOW, opened=(), closed=(), route=1):
    batch = Batch(**rows(*parts), opened=tuple(opened), closed=int32(closed))
    return Step(route=route, epoch=epoch, step=number, batch=batch)


FIRST = step(1, (5, 0, [7, 8, 9], [4]), opened=[opens(5)])


def test_a_row_opens_once_and_goes_on_by_deltas():
    at = line()
    run = at.accept(FIRST)
    assert isinstance(run, Run) and (run.rows[0].position, run.rows[0].blocks) == (3, [4])
    run = at.accept(step(2, (5, 3, [1], [6])))
    assert (run.rows[0].position, run.rows[0].blocks) == (4, [4, 6])
    assert at.accepted(1, NOW) == 2 and at.open_rows(1, NOW) == 1 and at.dropped == {}


@pytest.mark.parametrize(
    ("at", "coming", "reason"),
    [
        (line(), attrs.evolve(FIRST, route=2), "no route"),
        (line(), attrs.evolve(FIRST, epoch=OLD), "old epoch"),
        (line(), attrs.evolve(FIRST, epoch=LATER), "not open yet"),
        (line(is_open=False), FIRST, "not open yet"),
        (line(), attrs.evolve(FIRST, step=2), "gap"),
        (line(), step(1, (5, 0, [7], [])), "unknown row"),
        (line(), step(1, (5, 1, [7], []), opened=[opens(5)]), "wrong position"),
        (line(), step(1, (5, 0, [7], []), opened=[opens(5, attempt=1)]), "unknown row"),
    ],
)
def test_what_may_not_run_is_dropped_and_counted(at, coming, reason):
    dropped = at.accept(coming)
    assert dropped == Drop(reason) and at.dropped == {reason: 1} and at.accepted(1, NOW) == 0
    assert dropped.breaks_the_route == (reason in ("gap", "unknown row", "wrong position"))
    assert at.stale_dropped == (0 if dropped.breaks_the_route else 1)


def test_a_step_said_twice_runs_once():
    at = line()
    at.accept(FIRST)
    assert at.accept(FIRST) == Drop("duplicate") and not Drop("duplicate").breaks_the_route
    assert at.accept(step(2, (5, 3, [1], []))).rows[0].position == 4


def test_a_step_that_found_no_memory_keeps_its_place_and_its_rows_go_on():
    at = line()
    run = at.accept(attrs.evolve(FIRST, out_of_memory=True))
    assert run.out_of_memory and (run.rows[0].position, run.rows[0].blocks) == (3, [4])
    run = at.accept(step(2, (5, 3, [1], [6])))
    assert not run.out_of_memory and run.rows[0].position == 4
    at.accept(step(3, closed=[5]))
    assert at.open_rows(1, NOW) == 0 and at.dropped == {}


def test_a_missing_step_breaks_the_route():
    at = line()
    at.accept(FIRST)
    assert at.accept(step(3, (5, 3, [1], []))) == Drop("gap")


def test_a_closed_row_is_forgotten_before_anything_runs():
    at = line()
    at.accept(FIRST)
    run = at.accept(step(2, (6, 0, [1], [4]), opened=[opens(6)], closed=[5]))
    assert [row.row for row in run.rows] == [6] and at.open_rows(1, NOW) == 1
    assert at.accept(step(3, (5, 3, [1], []))) == Drop("unknown row")


def test_a_step_may_only_close():
    at = line()
    at.accept(FIRST)
    run = at.accept(step(2, closed=[5, 99]))
    assert run.rows == () and at.open_rows(1, NOW) == 0 and at.accepted(1, NOW) == 2


def test_a_new_epoch_starts_with_step_one_and_no_rows():
    at = line()
    at.accept(FIRST)
    at.board.publish(Fence(route=1, epoch=LATER, open=True))
    assert at.accept(step(1, (5, 3, [1], []), epoch=LATER)) == Drop("unknown row")
    assert at.accept(attrs.evolve(FIRST, epoch=LATER)).rows[0].blocks == [4]
    assert at.accepted(1, NOW) == 0 and at.open_rows(1, NOW) == 0, "what was, is no proof of what is"
    assert at.accept(step(2, (5, 3, [1], []))) == Drop("old epoch")


def test_routes_do_not_mix():
    at = line()
    at.board.publish(Fence(route=2, epoch=OLD, open=True))
    at.accept(FIRST)
    assert isinstance(at.accept(attrs.evolve(FIRST, route=2, epoch=OLD)), Run)
    at.accept(step(2, closed=[5]))
    assert (at.open_rows(1, NOW), at.open_rows(2, OLD)) == (0, 1) and (at.accepted(1, NOW), at.accepted(2, OLD)) == (
        2,
        1,
    )


def test_a_shared_prefix_is_where_a_row_begins():
    run = line().accept(step(1, (5, 8, [1], [3, 4, 9]), opened=[opens(5, cached_tokens=8)]))
    assert (run.rows[0].position, run.rows[0].blocks) == (9, [3, 4, 9])


def test_a_result_leaves_only_while_its_epoch_lasts():
    at = line()
    run = at.accept(FIRST)
    assert at.may_send(run).next_addr == Endpoint("next")
    at.board.publish(Fence(route=1, epoch=NOW, open=False))
    assert at.may_send(run) is None
    at.board.publish(Fence(route=1, epoch=LATER, open=True))
    assert at.may_send(run) is None
    at.board.remove(1)
    assert at.may_send(run) is None
    assert at.dropped == {"not open yet": 1, "old epoch": 1, "no route": 1} and at.stale_dropped == 3


def test_history_is_kept_where_it_is_needed_and_only_there():
    counting = SamplingParams(repetition_penalty=1.1)
    at = line()
    opened = [opens(5, params=counting, history=int32([7, 8, 9])), opens(6)]
    at.accept(step(1, (5, 0, [7, 8], []), (6, 0, [7, 8, 9], []), opened=opened))
    at.accept(step(2, (5, 2, [9], []), (6, 3, [1], [])))
    run = at.accept(step(3, (5, 3, [40], []), (6, 4, [2], [])))
    assert run.rows[0].history.column.tolist() == [7, 8, 9, 40], "the prefill repeats what the opening said"
    assert run.rows[1].history.column.tolist() == []


def test_history_of_a_row_with_a_shared_prefix_is_whole():
    counting = SamplingParams(presence_penalty=0.5)
    at = line()
    opened = [opens(5, params=counting, history=int32([7, 8, 9, 10, 11]), cached_tokens=4)]
    assert at.accept(step(1, (5, 4, [11], []), opened=opened)).rows[0].history.column.tolist() == [7, 8, 9, 10, 11]
    assert at.accept(step(2, (5, 5, [12], []))).rows[0].history.column.tolist() == [7, 8, 9, 10, 11, 12]


def test_the_board_shows_one_fence_per_route():
    board = FenceBoard()
    fence = Fence(route=1, epoch=OLD, open=True)
    board.publish(fence)
    seen = board.all()
    board.publish(attrs.evolve(fence, epoch=NOW))
    assert seen == (fence,) and board.read(1).epoch == NOW and len(board.all()) == 1
    board.remove(1)
    assert board.read(1) is None


# ---------------------------------------------------------------- what a step may say

FIRST_LIMITS = StepLimits(vocab=100, kv_blocks=8, block_size=4, hidden=2, dtype="float32", first=True)
LATER_LIMITS = attrs.evolve(FIRST_LIMITS, first=False)
HIDDEN = Blob("float32", (3, 2), bytes(24))
BIASED = SamplingParams(logit_bias=((100, 1.0),))
STOPS = SamplingParams(stop_ids=(7, 100))
PENALISED = SamplingParams(presence_penalty=1.0)


@pytest.mark.parametrize(
    "lie",
    [
        step(1, (5, 0, [7, 100, 9], [4]), opened=[opens(5)]),
        step(1, (5, 0, [7, 8, 9], [8]), opened=[opens(5)]),
        step(1, (5, 32, [7, 8, 9], [4]), opened=[opens(5)]),
        step(1, (5, 2**31 - 1, [7, 8, 9], [4]), opened=[opens(5)]),
        step(1, (5, 0, [7], [4]), (5, 1, [8], []), opened=[opens(5)]),
        step(1, (5, 0, [7, 8, 9], [4]), opened=[opens(5, params=BIASED)]),
        step(1, (5, 0, [7, 8, 9], [4]), opened=[opens(5, params=STOPS)]),
        step(1, (5, 0, [7, 8, 9], [4]), opened=[opens(5, params=PENALISED, history=int32([7, 8, 100]))]),
        step(1, (5, 0, [7, 8, 9], [4]), opened=[opens(5, params=PENALISED)]),
        attrs.evolve(FIRST, hidden=HIDDEN),
    ],
    ids=[
        "a token", "a block", "a position", "the last position", "a row twice", "a bias", "a stop id", "a history",
        "penalties without a history", "hidden states for the first stage",
    ],
)  # fmt: skip
def test_a_step_out_of_range_is_dropped_counted_and_moves_nothing(lie):
    at = line(limits=FIRST_LIMITS)
    assert at.accept(lie) == Drop("out of range") and at.dropped == {"out of range": 1}
    assert not Drop("out of range").breaks_the_route and at.open_rows(1, NOW) == 0
    assert isinstance(at.accept(FIRST), Run), "the one that was meant comes through"


@pytest.mark.parametrize(
    "hidden",
    [None, Blob("float16", (3, 2), bytes(12)), Blob("float32", (3, 3), bytes(36)), Blob("int32", (3, 2), bytes(24))],
    ids=["none", "another dtype", "another width", "no floats"],
)
def test_hidden_states_of_another_kind_are_out_of_range(hidden):
    at = line(limits=LATER_LIMITS)
    assert at.accept(attrs.evolve(FIRST, hidden=hidden)) == Drop("out of range")
    assert isinstance(at.accept(attrs.evolve(FIRST, hidden=HIDDEN)), Run)


def test_a_step_without_memory_or_rows_needs_no_hidden_states():
    at = line(limits=LATER_LIMITS)
    assert isinstance(at.accept(attrs.evolve(FIRST, out_of_memory=True)), Run)
    assert isinstance(at.accept(step(2, closed=[5])), Run)


def test_a_row_has_a_block_for_each_of_its_positions():
    at = line(limits=FIRST_LIMITS)
    assert at.accept(step(1, (5, 0, [1, 2, 3, 4, 5], [4]), opened=[opens(5)])) == Drop("no room")
    assert Drop("no room").breaks_the_route, "its Broker means another row than this stage has"
