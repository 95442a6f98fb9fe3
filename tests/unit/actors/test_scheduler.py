"""One route at work, driven step by step: what is computed, in which order, and whose blocks give way."""

import random

import pytest

from hydra.actors.core.suspicion import SOLITARY_TOKENS
from hydra.actors.scheduling.kv_ledger import KvLedger
from hydra.actors.scheduling.row import Row, RowKey
from hydra.actors.scheduling.scheduler import COHORT_ROWS_MAX, RouteScheduler
from hydra.protocol.batch import ROW_FINE, ROW_NOT_FINITE, Batch, StepResult, int32
from hydra.protocol.ids import Epoch
from hydra.protocol.messages.generations import Open
from hydra.protocol.model.decoder_spec import LengthRule
from hydra.protocol.sampling import GREEDY, SamplingParams

EPOCH = Epoch(1, 1)
STOP_ID = 2


def engine(*, stages=2, credits=None, blocks=1000, block_size=4, max_batch_tokens=0, prefix_cache=False, rule=None):
    return RouteScheduler(
        route=1,
        epoch=EPOCH,
        n_stages=stages,
        credits=stages + 2 if credits is None else credits,
        ledger=KvLedger(blocks, block_size, prefix_cache),
        max_batch_tokens=max_batch_tokens,
        length_rule=rule,
    )


def add(at, number, prompt, *, max_tokens=1000, deaths=0, shown=(), params=GREEDY, shares=True, request=0, owner=""):
    history = [*(range(1000, 1000 + prompt) if isinstance(prompt, int) else prompt), *shown]
    opening = Open(
        session=number,
        attempt=0,
        model_id="m",
        history=int32(history),
        prompt_tokens=len(history) - len(shown),
        max_tokens=max_tokens,
        params=params,
        stop_ids=(STOP_ID,),
        deaths=deaths,
        request=request,
        owner=owner,
    )
    row = Row(
        row=number,
        key=RowKey("f", number),
        open=opening,
        arrival=number,
        generated=len(shown),
        shares=shares,
    )
    at.add(row)
    return row


def sent(at, now_s=0.0):
    """Everything that can go now."""
    out = []
    while (composed := at.compose(now_s)) is not None:
        out.append(composed)
    at.check()
    return out


def answer(at, step, batch, token=7, now_s=0.1, broken=()):
    """The last stage's word on one step: a token for every sampled row, or that its logits are not finite."""
    sampled = batch.sample != 0
    rows = batch.row[sampled].tolist()
    result = StepResult(
        route=1,
        epoch=EPOCH,
        step=step,
        row=batch.row[sampled],
        attempt=batch.attempt[sampled],
        position=(batch.position + batch.length)[sampled],
        token=int32([0 if row in broken else token for row in rows]),
        fault=int32([ROW_NOT_FINITE if row in broken else ROW_FINE for row in rows]),
    )
    return at.take(result, now_s)


def decoding(at, rows):
    """Brings rows through their prefill, so that each has its first token."""
    flights = []
    while any(row.position < len(row.history) or row.waits_for_token for row in rows):
        flights += sent(at)
        answer(at, *flights.pop(0))
    assert not flights


def test_a_prompt_is_computed_once_in_order_and_sampled_at_its_end():
    at = engine(stages=3)
    add(at, 1, 700)
    chunks, flights = [], []
    while not chunks or not chunks[-1][3]:
        flights += sent(at)
        step, batch = flights.pop(0)
        assert batch.n_rows == 1 and step == len(chunks) + 1
        chunks.append((int(batch.position[0]), int(batch.length[0]), batch.tokens.tolist(), int(batch.sample[0])))
        answer(at, step, batch)
    assert [token for _, _, tokens, _ in chunks for token in tokens] == list(range(1000, 1700))
    starts = [position for position, _, _, _ in chunks]
    assert starts == [sum(length for _, length, _, _ in chunks[:i]) for i in range(len(chunks))]
    assert [sample for _, _, _, sample in chunks] == [0] * (len(chunks) - 1) + [1] and len(chunks) > 2


def test_chunks_of_one_prompt_follow_each_other_without_waiting():
    at = engine(stages=2)
    add(at, 1, 500)
    assert [batch.position[0] for _, batch in sent(at)] == [0, 125, 219]


def test_a_token_budget_bounds_every_step():
    at = engine(max_batch_tokens=100)
    for number in range(1, 6):
        add(at, number, 70)
    assert [batch.n_tokens for _, batch in sent(at)] == [100, 100, 100]


def test_a_cached_prefix_is_not_computed_again_and_its_blocks_are_announced():
    at = engine(prefix_cache=True)
    first = add(at, 1, 10)
    decoding(at, [first])
    second = add(at, 2, 10)
    _, batch = sent(at)[-1]
    i = batch.row.tolist().index(2)
    assert second.cached == 8 and (batch.position[i], batch.length[i]) == (8, 2)
    opening = next(o for o in batch.opened if o.row == 2)
    assert opening.cached_tokens == 8
    assert batch.new_blocks[i] == 3, "two shared blocks and one of its own"
    assert batch.blocks[-3:].tolist() == list(at.ledger.table(2))
    assert at.ledger.table(2)[:2] == at.ledger.table(1)[:2]


def test_decoding_rows_travel_in_even_cohorts_each_in_one_flight():
    at = engine(stages=4)
    rows = [add(at, number, 3) for number in range(1, 11)]
    decoding(at, rows)
    flights = sent(at)
    assert [batch.n_rows for _, batch in flights] == [3, 3, 3, 1]
    under_way = [row for _, batch in flights for row in batch.row.tolist()]
    assert sorted(under_way) == list(range(1, 11))
    assert all(set(batch.length.tolist()) == {1} and set(batch.sample.tolist()) == {1} for _, batch in flights)


def test_a_cohort_is_bounded():
    at = engine(stages=1, credits=3)
    rows = [add(at, number, 1) for number in range(1, 151)]
    decoding(at, rows)
    assert [batch.n_rows for _, batch in sent(at)] == [COHORT_ROWS_MAX, COHORT_ROWS_MAX]


@pytest.mark.parametrize("credits", [1, 2, 3])
def test_credits_bound_the_flights(credits):
    at = engine(stages=6, credits=credits)
    add(at, 1, 4000)
    assert len(sent(at)) == credits
    answer(at, *_oldest(at))
    assert len(sent(at)) == 1


def _oldest(at):
    """The oldest flight with a batch that sampled nothing (the middle of a long prompt)."""
    return at.flights[0].step, Batch()


def test_positions_go_on_from_the_prompt():
    at = engine(stages=1)
    row = add(at, 1, 5)
    seen = []
    for turn in range(4):
        ((step, batch),) = sent(at)
        assert answer(at, step, batch, token=50 + turn) == {0: row}
        seen.append((int(batch.position[0]), batch.tokens.tolist(), row.position, row.last_id))
    assert seen[1:] == [(5, [50], 6, 51), (6, [51], 7, 52), (7, [52], 8, 53)]
    assert seen[0][2:] == (5, 50) and row.generated == 4


@pytest.mark.parametrize(
    ("token", "max_tokens", "shown", "finish"),
    [
        (STOP_ID, 10, (), "stop"),
        (7, 1, (), "length"),
        (STOP_ID, 1, (), "stop"),
        (7, 3, (8, 9), "length"),
        (7, 4, (8, 9), None),
    ],
)
def test_how_a_row_ends(token, max_tokens, shown, finish):
    at = engine(stages=1)
    row = add(at, 1, 5, max_tokens=max_tokens, shown=shown)
    ((step, batch),) = sent(at)
    assert answer(at, step, batch, token=token) == {0: row}
    assert row.finish == finish
    assert (1 in at.rows) == (finish is None)
    assert at.ledger.blocks_free == (1000 if finish else 1000 - len(at.ledger.table(1)))


def test_an_ended_row_is_announced_closed_once_even_when_nobody_else_runs():
    at = engine(stages=1)
    add(at, 1, 5, max_tokens=1)
    ((step, batch),) = sent(at)
    answer(at, step, batch)
    ((step, batch),) = sent(at)
    assert batch.closed.tolist() == [1] and batch.n_rows == 0
    assert answer(at, step, batch) == {} and sent(at) == []


def test_a_row_that_never_travelled_needs_no_farewell():
    at = engine()
    at.remove(add(at, 1, 5))
    assert sent(at) == []


def test_a_row_is_introduced_once_with_its_history_only_where_needed():
    at = engine(stages=1)
    add(at, 1, (4, 5), params=SamplingParams(presence_penalty=1.0))
    add(at, 2, (4, 5))
    ((step, batch),) = sent(at)
    assert {o.row: o.history.tolist() for o in batch.opened} == {1: [4, 5], 2: []}
    answer(at, step, batch)
    assert all(batch.opened == () for _, batch in sent(at))


def test_when_blocks_run_out_the_youngest_gives_way():
    at = engine(stages=1, blocks=6)
    rows = [add(at, number, 8) for number in (1, 2, 3)]
    decoding(at, rows)
    flights = sent(at)
    assert [row.row for row in at.preempted] == [3] and set(at.rows) == {1, 2}
    under_way = [row for _, batch in flights for row in batch.row.tolist()]
    assert under_way[0] == 1 and 3 not in under_way
    assert flights[0][1].closed.tolist() == [3], "its blocks appear again in this very step"
    at.ledger.check()


def test_the_old_never_gives_way_to_the_young():
    at = engine(stages=1, blocks=3)
    old = add(at, 1, 11)
    decoding(at, [old])
    young = add(at, 2, 5)
    assert [batch.row.tolist() for _, batch in sent(at)] == [[1]]
    assert young.row in at.rows and at.preempted == []


def test_a_request_of_many_rows_pays_for_its_own_growth():
    at = engine(stages=1, blocks=12)
    large = [add(at, number, 8, request=1) for number in range(1, 6)]
    small = add(at, 6, 4, request=2)
    decoding(at, [*large, small])
    for _ in range(4):
        for flight in sent(at):
            answer(at, *flight)
    assert at.preempted and small not in at.preempted and large[0] not in at.preempted
    assert {row.key.session for row in at.preempted} <= {2, 3, 4, 5}


def test_the_request_of_the_most_rows_gives_way_first():
    at = engine(stages=1, blocks=11)
    oldest = add(at, 1, 4, request=1)
    large = [add(at, number, 5, request=2) for number in range(2, 6)]
    small = add(at, 6, 5, request=3)
    decoding(at, [oldest, *large, small])
    sent(at)
    assert at.preempted == [large[-1]]


def test_a_row_that_waits_for_blocks_holds_up_its_own_request_only():
    at = engine(stages=1, blocks=8)
    decoding(at, [add(at, 1, 16, request=2)])
    long = add(at, 2, 16, request=2)
    behind = add(at, 3, 4, request=2)
    short = add(at, 4, 4, request=3)
    _, batch = sent(at)[0]
    assert set(batch.row.tolist()) == {1, 4} and long.position == behind.position == 0 and short.position == 4
    assert at.preempted == [], "nobody who holds no block has one to give"


def test_a_row_does_not_take_from_a_request_that_holds_less():
    at = engine(stages=1, blocks=6)
    first = add(at, 1, 4, request=1)
    last = add(at, 2, 8, request=1)
    small = add(at, 3, 8, request=2)
    flights = sent(at)
    for _ in range(12):
        answer(at, *flights.pop(0))
        flights += sent(at)
        if at.preempted:
            break
    assert at.preempted == [last] and first.row in at.rows, "the youngest is the other's, but the sibling gives way"
    assert small.row in at.rows


def test_room_is_counted_for_those_who_were_let_in_and_have_no_blocks_yet():
    at = engine(blocks=10)
    assert at.has_room(39) and not at.has_room(40)
    add(at, 1, 20)
    assert at.has_room(15) and not at.has_room(16), "six blocks are pledged, none is taken"
    step = sent(at)[0]
    assert at.has_room(15) and not at.has_room(16)
    at.remove(at.rows[1])
    assert at.has_room(39)
    answer(at, *step)


def test_a_suspect_travels_alone_and_the_others_come_home_first():
    at = engine(stages=2)
    quiet = [add(at, number, 3) for number in (1, 2)]
    decoding(at, quiet)
    flights = sent(at)
    suspect = add(at, 3, 3, deaths=2)
    assert sent(at) == []
    answer(at, *flights[0])
    assert sent(at) == [], "one of the others is still under way"
    answer(at, *flights[1])
    for turn in range(SOLITARY_TOKENS):
        ((step, batch),) = sent(at)
        assert batch.row.tolist() == [3], f"company at token {turn}"
        answer(at, step, batch)
    assert not suspect.solitary
    assert sorted(row for _, batch in sent(at) for row in batch.row.tolist()) == [1, 2, 3]


def test_two_suspects_are_tried_one_after_the_other_the_older_first():
    at = engine(stages=2)
    for number in (1, 2):
        add(at, number, 3, deaths=2)
    order = []
    for _ in range(2 * SOLITARY_TOKENS):
        ((step, batch),) = sent(at)
        order += batch.row.tolist()
        answer(at, step, batch)
    assert order == [1] * SOLITARY_TOKENS + [2] * SOLITARY_TOKENS


def test_a_suspect_without_room_does_not_stop_the_route():
    at = engine(stages=1, blocks=4)
    old = add(at, 1, 11)  # three blocks, and nobody may travel beside the suspect
    decoding(at, [old])
    add(at, 2, 3, deaths=2)
    for _ in range(SOLITARY_TOKENS):
        ((step, batch),) = sent(at)
        assert batch.row.tolist() == [2]
        answer(at, step, batch)
    assert [row.row for row in at.preempted] == [1]


def test_a_result_out_of_turn_ends_the_epoch():
    at = engine(stages=2)
    rows = [add(at, number, 3) for number in (1, 2)]
    decoding(at, rows)
    (_, _), (second, batch) = sent(at)
    assert answer(at, second, batch) is None
    assert answer(engine(), 1, batch) is None


def test_a_token_for_a_row_that_left_is_dropped():
    at = engine(stages=1)
    row = add(at, 1, 3)
    ((step, batch),) = sent(at)
    at.remove(row)
    assert answer(at, step, batch) == {} and row.generated == 0


def test_a_row_that_is_no_numbers_is_gone_with_its_blocks_and_the_stages_are_told():
    at = engine(stages=1)
    bad, good = add(at, 1, 9), add(at, 2, 9)
    ((step, batch),) = sent(at)
    assert list(answer(at, step, batch, broken=(1,)).items()) == [(1, good)]
    assert at.failed == [(bad, "not finite")] and at.rows == {2: good}
    assert at.ledger.blocks_free == 1000 - len(at.ledger.table(2)) and bad.generated == 0
    ((_, batch),) = sent(at)
    assert batch.closed.tolist() == [1] and batch.row.tolist() == [2]
    at.ledger.check()


@pytest.mark.parametrize("shared", [False, True], ids=["computed by itself", "begun by another"])
def test_nobody_shares_what_a_row_that_is_no_numbers_has_computed(shared):
    at = engine(stages=1, prefix_cache=True)
    if shared:
        decoding(at, [add(at, 8, 9)])
    bad = add(at, 1, 9)
    assert bad.cached == (8 if shared else 0)
    for step, batch in sent(at):
        answer(at, step, batch, broken=(1,))
    assert at.failed == [(bad, "not finite")] and add(at, 2, 9).cached == 0
    at.ledger.check()
    for number in list(at.rows):
        at.remove(at.rows[number])
    at.ledger.check()
    assert at.ledger.blocks_free == 1000


def test_a_row_that_may_not_share_computes_all_of_itself():
    at = engine(prefix_cache=True)
    decoding(at, [add(at, 1, 9)])
    row = add(at, 2, 9, shares=False)
    assert row.cached == 0 and row.position == 0
    decoding(at, [row])
    assert add(at, 3, 9).cached == 8
    at.ledger.check()


def test_a_lie_about_one_row_changes_nothing_of_the_others():
    """They are still there to be opened again."""
    at = engine(stages=1)
    rows = [add(at, number, 3, max_tokens=1) for number in (1, 2, 3)]
    ((step, batch),) = sent(at)
    batch.position[2] += 1
    assert answer(at, step, batch, broken=(1,)) is None
    assert list(at.rows.values()) == rows and at.failed == []


def starve(at, step, now_s=0.1):
    """The last stage's word on a step that found no memory somewhere."""
    return at.take(StepResult(route=1, epoch=EPOCH, step=step, out_of_memory=True), now_s)


def test_the_rows_of_a_step_without_memory_are_gone_and_steps_are_half_as_large():
    at = engine(stages=2)
    rows = [add(at, number, 3) for number in range(1, 41)]
    decoding(at, rows)
    (step, batch), _ = sent(at)
    assert batch.n_tokens == 20 and starve(at, step) == {}
    lost = batch.row.tolist()
    assert [row.row for row, fault in at.failed if fault == "no memory"] == lost and len(at.rows) == 20
    answer(at, step + 1, at_flight(at))
    (_, closing), *_ = sent(at)
    assert closing.closed.tolist() == lost and closing.n_tokens == 10
    at.ledger.check()


def at_flight(at):
    """A batch of the rows in the oldest flight, each with its token."""
    rows = at.flights[0].rows
    ones = int32([1 for _ in rows])
    return Batch(
        row=int32([row.row for row in rows]),
        attempt=int32([0 for _ in rows]),
        position=int32([row.position - 1 for row in rows]),
        length=ones,
        sample=ones,
    )


def test_under_a_bound_prompts_and_answers_go_on_side_by_side():
    at = engine(stages=1, credits=1)
    old = [add(at, number, 3) for number in (1, 2, 3, 4)]
    decoding(at, old)
    young = add(at, 9, 30)
    ((step, batch),) = sent(at)
    assert batch.n_tokens == 34 and starve(at, step) == {}
    rows = [add(at, row.row + 10, 8) for row in (*old, young)]
    shares = []
    while any(row.row in at.rows and row.generated < 4 for row in rows):
        ((step, batch),) = sent(at)
        assert batch.n_tokens <= 17
        shares.append((batch.n_tokens, int((batch.length == 1).sum())))
        answer(at, step, batch)
    assert any(n_tokens > n_rows > 0 for n_tokens, n_rows in shares)


def test_a_bound_of_one_token_leaves_nobody_behind():
    """Prompts go first; when they wait for the blocks of those that answer, these go on."""
    at = engine(stages=1, credits=1, blocks=6, max_batch_tokens=2)
    add(at, 1, 3)
    ((step, _),) = sent(at)
    starve(at, step)
    old = add(at, 2, 8, max_tokens=12)
    decoding(at, [old])
    young = add(at, 3, 12, max_tokens=10)
    while at.rows:
        for number in range(4, 4 + len(at.preempted)):  # it had to give its blocks to the older one
            young = add(at, number, 12, max_tokens=10)
        at.preempted.clear()
        ((step, batch),) = sent(at)
        assert batch.n_tokens <= 1
        answer(at, step, batch)
        at.ledger.check()
    assert (old.generated, young.generated) == (12, 10)
    at.ledger.check()


def test_one_token_that_finds_no_memory_is_named():
    at = engine(stages=1)
    row = add(at, 1, 1)
    ((step, _),) = sent(at)
    starve(at, step)
    assert at.failed == [(row, "no memory alone")]


def test_who_shares_blocks_that_were_never_filled_is_computed_again_too():
    """Two chunks are under way when the first turns out empty: what the second computed stands on nothing."""
    at = engine(stages=2, prefix_cache=True, max_batch_tokens=8)
    sound = add(at, 1, 4)
    decoding(at, [sound])
    first = add(at, 2, 16)
    flights = sent(at)
    assert first.position == 16, "its prompt is named, and under way"
    heir = add(at, 3, 16)
    assert heir.cached == 12
    starve(at, flights[0][0])
    assert {row for row, _ in at.failed} == {first, heir, sound}, "the last had its next token in that step"
    assert add(at, 4, 16).cached <= 4, "only what was filled before is shared"
    at.ledger.check()


@pytest.mark.parametrize("who", ["leaves", "stays"])
def test_blocks_left_behind_by_name_are_not_shared_when_their_step_fails(who):
    at = engine(stages=2, prefix_cache=True, max_batch_tokens=8)
    first = add(at, 2, 16)
    (step, _), (later, batch) = sent(at)
    if who == "leaves":
        at.remove(first)
    starve(at, step)
    assert answer(at, later, batch) == {}, "what was computed behind it counts for nobody"
    fresh = add(at, 3, 16)
    assert fresh.cached == 0
    decoding(at, [fresh])
    assert add(at, 4, 16).cached == 12 and at.ledger.table(4)[:3] == at.ledger.table(3)[:3]
    at.ledger.check()


def test_a_step_that_only_closes_rows_cannot_lack_memory():
    at = engine(stages=1)
    at.remove(add(at, 1, 5))
    row = add(at, 2, 5, max_tokens=1)
    ((step, batch),) = sent(at)
    answer(at, step, batch)
    ((step, batch),) = sent(at)
    assert row.row not in at.rows and batch.n_rows == 0 and starve(at, step) is None


def test_rows_in_flight_are_those_a_death_would_hit():
    at = engine(stages=1)
    rows = [add(at, number, 3) for number in (1, 2)]
    decoding(at, rows)
    assert at.rows_in_flight() == set()
    sent(at)
    assert at.rows_in_flight() == {row.key for row in rows}
    at.remove(rows[0])
    assert at.rows_in_flight() == {rows[1].key}


def test_a_step_is_overdue_by_what_was_measured():
    at = engine(stages=1)
    assert at.overdue_s(2.0, 30.0) is None
    row = add(at, 1, 1)
    step, batch = at.compose(100.0)
    assert at.overdue_s(2.0, 30.0) == 130.0, "nothing was measured yet"
    answer(at, step, batch, now_s=101.0)
    at.compose(102.0)
    assert at.overdue_s(2.0, 30.0) == pytest.approx(102.0 + 8.0, abs=1.0) and row.in_flight == 1


@pytest.mark.parametrize("seed", range(30))
def test_any_crowd_gets_every_token_at_its_place(seed):
    """Rows of all kinds come, leave, are preempted and end: no row is in two decode flights, no position is skipped."""
    rng = random.Random(seed)
    stages = rng.randint(1, 4)
    at = engine(stages=stages, blocks=rng.randint(30, 60), max_batch_tokens=rng.choice([0, 7, 40]), prefix_cache=True)
    computed, flights, number = {}, [], 0
    for _ in range(250):
        if rng.random() < 0.3 and len(at.rows) < 12:
            number += 1
            prompt = [rng.randint(3, 4) for _ in range(rng.randint(1, 40))]
            deaths, whose = (
                2 * (rng.random() < 0.05),
                {"request": seed % 2 * (1 + number % 3), "owner": "ab"[number % 2]},
            )
            row = add(at, number, prompt, max_tokens=rng.randint(1, 30), deaths=deaths, **whose)
            computed[number] = row.cached
        if rng.random() < 0.03 and at.rows:
            at.remove(at.rows[rng.choice(list(at.rows))])
        for step, batch in sent(at):
            for row, position, length in zip(batch.row, batch.position, batch.length, strict=True):
                assert position == computed[int(row)], f"row {row} skipped or repeated a position"
                computed[int(row)] = int(position + length)
            flights.append((step, batch))
        assert len(flights) <= stages + 2
        sampled = [int(r) for _, batch in flights for r, s in zip(batch.row, batch.sample, strict=True) if s]
        assert len(sampled) == len(set(sampled)), "a row waits for two tokens at once"
        at.preempted.clear()
        at.ledger.check()
        assert flights or not at.rows, "rows wait and nothing is under way"
        if flights:
            assert answer(at, *flights.pop(0), token=rng.choice([2, 3, 4, 5, 6])) is not None
    for row in list(at.rows.values()):
        at.remove(row)
    at.ledger.check()
    assert at.ledger.blocks_free == at.ledger.blocks_total and at._pledged == len(at._prefill) == 0


def test_a_row_that_would_outgrow_a_rope_that_changes_all_its_keys_is_preempted():
    at = engine(rule=LengthRule(limit=12, reopens=True))
    row, other = add(at, 1, 10), add(at, 2, 3)
    decoding(at, [row, other])
    for _ in range(2):  # computing tokens 11 and 12
        for step, batch in sent(at):
            answer(at, step, batch)
    assert row.position == 12 and not at.preempted
    ((step, batch),) = sent(at)
    assert at.preempted == [row] and batch.row.tolist() == [2] and batch.closed.tolist() == [1]
    at.preempted.clear()
    again = add(at, 3, [*row.history, 7, 7, 7])
    answer(at, step, batch)
    decoding(at, [again])
    assert again.position == 13 and not at.preempted  # long from its opening, it grows on


@pytest.mark.parametrize("reopens", [False, True])
def test_rows_beyond_the_length_rule_share_no_prefix(reopens):
    at = engine(prefix_cache=True, rule=LengthRule(limit=12, reopens=reopens))
    first = add(at, 1, 12)
    decoding(at, [first])
    assert add(at, 2, 12).cached == 8
    long = add(at, 3, 20)
    assert long.cached == 0
    decoding(at, [long])
    assert add(at, 4, 20).cached == 0  # and what it computed is of no use to its like
    grown = add(at, 5, 10, shown=range(1010, 1020))  # a short prompt with a long answer
    assert grown.cached == (0 if reopens else 12)


def test_the_opening_says_how_long_prompt_and_history_are():
    at = engine()
    add(at, 1, 5, shown=(8, 9))
    ((_, batch),) = sent(at)
    assert [(opening.prompt_tokens, opening.history_tokens) for opening in batch.opened] == [(5, 7)]
