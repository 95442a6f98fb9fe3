"""The broker's side of a generation: who gets in, in which order, who is told what when a route comes and goes."""

import attrs
import numpy as np
import pytest

from hydra.actors.core.facts import FrontendLost, ModelGone, ModelKnown, RouteDown, RouteUp, StepOverdue
from hydra.actors.core.machine import CancelTimer, Received, Send, SetTimer, Tell, TimerFired
from hydra.actors.core.names import PLANNER
from hydra.actors.scheduling.broker import UNMEASURED_LEASE_S, Broker
from hydra.actors.scheduling.data_link import CloseLink, LinkFull, OpenLink, SendStep, StepBack
from hydra.actors.scheduling.probes import PROBE_DEADLINE_S, READY_FOR_S
from hydra.actors.scheduling.row import Row, RowKey
from hydra.actors.scheduling.row_faults import FAILURES_MAX, NO_MEMORY, RowFaults
from hydra.protocol.batch import Logprobs, StepResult, int32
from hydra.protocol.context_length import context_overflow
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Address, Epoch
from hydra.protocol.messages.generations import Close, Open, OpenRefused, Reopen, Tokens
from hydra.protocol.messages.models import ReadyReply, ReadyRequest
from hydra.protocol.messages.plans import RouteBroken
from hydra.protocol.model.decoder_spec import LengthRule
from hydra.protocol.refusal import Refusal
from hydra.protocol.sampling import GREEDY, SamplingParams
from hydra.protocol.settings.engine import EngineSettings

FRONT = Address("front-1", "sessions")
ASKER = Address("front-1", "asks")
UP = RouteUp(
    model_id="m",
    route=1,
    epoch=Epoch(1, 1),
    nodes=("a", "b"),
    first_addr=Endpoint("tcp://a"),
    kv_blocks=100,
    block_size=4,
    max_model_len=64,
    credits=4,
    vocab=100,
)


def opening(session, **changes):
    made = Open(
        session=session,
        attempt=0,
        model_id="m",
        history=int32([3, 4, 5]),
        prompt_tokens=3,
        max_tokens=10,
        params=GREEDY,
        stop_ids=(2,),
    )
    return attrs.evolve(made, **changes)


class Table:
    """A broker with a route under it; keeps the steps that were sent and not yet answered."""

    def __init__(self, *, up=True, **limits):
        self.broker = Broker(limits=EngineSettings(**limits))
        self.now_s = 0.0
        self.steps = []
        self.epoch = UP.epoch
        self.tell(ModelKnown(model_id="m", max_model_len=64))
        if up:
            self.rise()

    def rise(self, **changes):
        up = attrs.evolve(UP, **changes)
        self.epoch, self.steps = up.epoch, []
        return self.tell(up)

    def tell(self, event):
        effects = self.broker.handle(event, self.now_s)
        self.steps += [effect.step for effect in effects if isinstance(effect, SendStep)]
        return effects

    def says(self, message, sender=FRONT):
        return self.tell(Received(sender, message))

    def fall(self, *, death):
        return self.tell(RouteDown(model_id="m", route=1, death=death))

    def result(self, step, token=7, broken=()):
        """`broken`: the sessions whose logits are no numbers."""
        sampled = step.batch.sample != 0
        (route,) = self.broker._models["m"].routes.values()
        rows = route.scheduler.rows
        fault = [int(row in rows and rows[row].key.session in broken) for row in step.batch.row[sampled].tolist()]
        return StepResult(
            route=step.route,
            epoch=step.epoch,
            step=step.step,
            row=step.batch.row[sampled],
            attempt=step.batch.attempt[sampled],
            position=(step.batch.position + step.batch.length)[sampled],
            token=int32([0 if broke else token for broke in fault]),
            fault=int32(fault),
        )

    def answer(self, token=7, broken=()):
        self.now_s += 0.01
        return self.tell(StepBack(self.result(self.steps.pop(0), token, broken)))


def mail(effects, kind, to=FRONT):
    return [e.message for e in effects if isinstance(e, Send) and e.to == to and isinstance(e.message, kind)]


def prompts(steps):
    """Which sessions' prompts were opened on the route, by their first token."""
    return [int(step.batch.tokens[0]) for step in steps if step.batch.opened]


def test_an_open_goes_out_as_a_step_and_its_token_comes_home():
    table = Table()
    effects = table.says(opening(9))
    (step,) = table.steps
    assert (step.route, step.epoch, step.step, step.batch.tokens.tolist()) == (1, Epoch(1, 1), 1, [3, 4, 5])
    assert SetTimer(("overdue", 1), UNMEASURED_LEASE_S) in effects
    (tokens,) = mail(table.answer(token=42), Tokens)
    assert (tokens.session.tolist(), tokens.position.tolist(), tokens.token.tolist()) == ([9], [3], [42])
    assert tokens.attempt.tolist() == [0] and table.steps[0].batch.tokens.tolist() == [42]


def test_one_message_per_frontend_per_step():
    table = Table(up=False)
    other = Address("front-2", "sessions")
    for session in (1, 2):
        table.says(opening(session))
    table.says(opening(1), sender=other)
    table.rise()
    effects = table.answer()
    assert mail(effects, Tokens)[0].session.tolist() == [1, 2]
    assert mail(effects, Tokens, to=other)[0].session.tolist() == [1]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model_id": "other"}, "model_not_found"),
        ({"history": int32([]), "prompt_tokens": 0}, "invalid_value"),
        ({"prompt_tokens": 4}, "invalid_value"),
        ({"prompt_tokens": 0}, "invalid_value"),
        ({"prompt_tokens": 1, "max_tokens": 1}, "invalid_value"),
        ({"max_tokens": 62}, "context_length_exceeded"),
    ],
)
def test_what_cannot_be_served_is_refused(changes, code):
    table = Table()
    (refused,) = mail(table.says(opening(1, **changes)), OpenRefused)
    assert (refused.session, refused.attempt, refused.refusal.code) == (1, 0, code)
    assert table.steps == []


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"history": int32([3, 100, 5])}, "prompt"),
        ({"stop_ids": (2, 100)}, "stop_token_ids"),
        ({"params": SamplingParams(stop_ids=(2**40,), min_tokens=1)}, "stop_token_ids"),
        ({"params": SamplingParams(logit_bias=((100, 1.0),))}, "logit_bias"),
    ],
)
def test_ids_beyond_the_vocabulary_are_refused_at_the_door_and_when_the_route_comes(changes, param):
    table = Table()
    (refused,) = mail(table.says(opening(1, **changes)), OpenRefused)
    assert (refused.refusal.code, refused.refusal.param) == ("invalid_value", param) and table.steps == []
    assert "100" in refused.refusal.message or "1099511627776" in refused.refusal.message
    early = Table(up=False)
    assert early.says(opening(1, **changes)) == [], "nobody knows the vocabulary yet"
    assert mail(early.rise(), OpenRefused)[0].refusal == refused.refusal and early.steps == []


def test_the_last_id_of_the_vocabulary_is_one_of_it():
    table = Table()
    table.says(opening(1, history=int32([99]), prompt_tokens=1, stop_ids=(99,)))
    assert len(table.steps) == 1


def test_what_is_too_long_is_told_as_the_front_door_tells_it():
    (refused,) = mail(Table().says(opening(1, max_tokens=62)), OpenRefused)
    assert refused.refusal == context_overflow(64, 3, 62, "max_tokens")


def test_the_last_token_that_fits_is_not_refused():
    table = Table()
    assert mail(table.says(opening(1, max_tokens=61)), OpenRefused) == []
    assert len(table.steps) == 1


def test_a_full_queue_refuses_new_work_but_never_a_replay():
    table = Table(up=False, max_waiting=2)
    for session in (1, 2):
        assert table.says(opening(session)) == []
    (refused,) = mail(table.says(opening(3)), OpenRefused)
    assert refused.refusal.code == "queue_full" and refused.refusal.retry_after_s is not None
    assert mail(table.says(opening(4, attempt=1)), OpenRefused) == []
    assert table.broker.statistics("m") == (0, 0, 0, 3)


def test_an_open_said_again_while_it_waits_is_not_refused():
    table = Table(up=False, max_waiting=1)
    table.says(opening(1))
    assert table.says(opening(1)) == [], "it holds its place; the queue is full of itself"
    table.rise()
    assert len(table.steps) == 1 and table.broker.statistics("m")[2:] == (1, 0)


def test_an_open_said_twice_is_served_once():
    table = Table()
    table.says(opening(1))
    assert table.says(opening(1)) == []
    assert table.broker.statistics("m")[2:] == (1, 0)


def test_replays_enter_before_new_work_the_oldest_first():
    table = Table()
    for session in (1, 2):
        table.says(opening(session, history=int32([10 + session, 4, 5])))
    table.fall(death=True)
    table.says(opening(3, history=int32([13, 4, 5])))
    table.says(opening(2, attempt=1, history=int32([12, 4, 5, 9])))
    table.says(opening(1, attempt=1, history=int32([11, 4, 5, 9])))
    table.rise(epoch=Epoch(1, 2))
    (step,) = table.steps
    firsts = [int(step.batch.tokens[sum(step.batch.length[:i])]) for i in range(3)]
    assert firsts == [11, 12, 13]


def test_a_gap_replay_takes_the_place_of_its_own_row():
    table = Table()
    table.says(opening(1))
    table.answer()
    table.says(opening(1, attempt=1, history=int32([3, 4, 5, 7])))
    assert table.broker.statistics("m")[2:] == (1, 0)
    while table.steps[0].batch.n_tokens == 1:
        assert mail(table.answer(), Tokens) == [], "a token of the former row was told"
    assert mail(table.answer(token=8), Tokens)[0].position.tolist() == [4]


def test_a_replay_that_is_refused_leaves_no_row_behind():
    table = Table()
    table.says(opening(1))
    (refused,) = mail(table.says(opening(1, attempt=1, max_tokens=99)), OpenRefused)
    assert refused.attempt == 1 and table.broker.statistics("m")[2:] == (0, 0)


def test_close_frees_the_row_and_the_next_one_enters():
    table = Table(max_running=1)
    table.says(opening(1))
    table.says(opening(2, history=int32([12, 4, 5])))
    assert prompts(table.steps) == [3]
    table.says(Close(session=1, attempt=0))
    assert prompts(table.steps) == [3, 12] and table.steps[1].batch.closed.tolist() == [1]
    assert mail(table.answer(), Tokens) == []


def test_a_close_of_a_former_attempt_does_not_hit_the_present_one():
    table = Table()
    table.says(opening(1, attempt=2))
    table.says(Close(session=1, attempt=1))
    assert table.broker.statistics("m")[2] == 1
    table.says(Close(session=1, attempt=2))
    assert table.broker.statistics("m") == (100, 100, 0, 0)


@pytest.mark.parametrize(("token", "most", "finish"), [(2, 10, 1), (7, 1, 2)])
def test_an_end_is_told_with_the_last_token_and_frees_everything(token, most, finish):
    table = Table()
    table.says(opening(1, max_tokens=most))
    (tokens,) = mail(table.answer(token), Tokens)
    assert tokens.finish.tolist() == [finish] and table.broker.statistics("m")[1:] == (100, 0, 0)


def test_a_route_that_falls_sends_its_sessions_back():
    table = Table()
    table.says(opening(1))
    table.answer()
    effects = table.fall(death=True)
    assert mail(effects, Reopen) == [Reopen(session=1, attempt=0, why="epoch", death=True)]
    assert effects[:2] == [CloseLink(1), CancelTimer(("overdue", 1))]


def test_a_row_between_two_steps_was_not_in_flight():
    table = Table(max_batch_tokens=3)
    for session in (1, 2, 3, 4, 5):
        table.says(opening(session))
    under_way = {int(row) for step in table.steps for row in step.batch.row}
    reopened = mail(table.fall(death=True), Reopen)
    assert [r.session for r in reopened] == [1, 2, 3, 4, 5], "oldest first"
    assert {r.session for r in reopened if r.death} == under_way == {1, 2, 3}


def test_a_plan_that_changed_kills_nobody():
    table = Table()
    table.says(opening(1))
    assert mail(table.fall(death=False), Reopen) == [Reopen(session=1, attempt=0, why="epoch", death=False)]


def test_those_who_wait_are_left_in_peace():
    table = Table(max_running=1)
    table.says(opening(1))
    table.says(opening(2))
    assert [r.session for r in mail(table.fall(death=True), Reopen)] == [1]
    table.rise(epoch=Epoch(1, 2))
    assert len(table.steps) == 1 and table.broker.statistics("m")[2:] == (1, 0)


def test_a_route_comes_up_with_a_fresh_link_and_refuses_what_grew_too_long():
    table = Table(up=False)
    table.says(opening(1, max_tokens=40))
    table.says(opening(2))
    effects = table.rise(max_model_len=32)
    assert effects[0] == OpenLink(1, Epoch(1, 1), Endpoint("tcp://a"), 4)
    (refused,) = mail(effects, OpenRefused)
    assert (refused.session, refused.refusal.code) == (1, "context_length_exceeded")
    assert table.broker.statistics("m")[2:] == (1, 0)


def test_a_result_of_a_former_epoch_is_counted_and_dropped():
    table = Table()
    table.says(opening(1))
    late = table.result(table.steps[0])
    table.fall(death=False)
    assert table.tell(StepBack(late)) == [] and table.broker.stale_dropped == 1
    table.rise(epoch=Epoch(1, 2))
    assert table.tell(StepBack(late)) == [] and table.broker.stale_dropped == 2


def test_a_result_out_of_turn_breaks_the_route():
    table = Table(max_batch_tokens=3)
    table.says(opening(1))
    table.says(opening(2))
    (broken,) = mail(table.tell(StepBack(table.result(table.steps[1]))), RouteBroken, to=PLANNER)
    assert (broken.route, broken.epoch) == (1, Epoch(1, 1)) and "step 2" in broken.why


@pytest.mark.parametrize(
    "logprobs",
    [
        Logprobs(chosen=np.zeros(0, np.float32), top_ids=int32([]).reshape(0, 1), top=np.zeros((0, 1), np.float32)),
        Logprobs(chosen=np.zeros(1, np.float32), top_ids=int32([[100]]), top=np.zeros((1, 1), np.float32)),
        Logprobs(chosen=np.zeros(1, np.float32), top_ids=int32([[-2]]), top=np.zeros((1, 1), np.float32)),
    ],
    ids=["of no row", "of an id beyond", "of an id below"],
)
def test_log_probabilities_of_something_else_break_the_route(logprobs):
    table = Table()
    table.says(opening(1))
    result = attrs.evolve(table.result(table.steps[0]), logprobs=logprobs)
    assert mail(table.tell(StepBack(result)), RouteBroken, to=PLANNER)


def test_a_first_stage_that_takes_nothing_breaks_the_route():
    effects = Table().tell(LinkFull(1, Epoch(1, 1)))
    assert mail(effects, RouteBroken, to=PLANNER)[0].route == 1


def test_a_late_step_is_reported_with_the_route_and_asked_about_again():
    table = Table()
    table.says(opening(1))
    table.now_s = UNMEASURED_LEASE_S
    tell, timer = table.tell(TimerFired(("overdue", 1)))
    assert tell == Tell("registry", StepOverdue(route=1, epoch=Epoch(1, 1), step=1, nodes=("a", "b")))
    assert timer.key == ("overdue", 1) and timer.at_s > table.now_s


def test_nothing_is_late_when_nothing_is_under_way():
    assert Table().tell(TimerFired(("overdue", 1))) == []
    table = Table()
    table.says(opening(1, max_tokens=1))
    table.answer()
    assert CancelTimer(("overdue", 1)) in table.answer()


def test_a_session_that_outgrows_a_long_rope_is_asked_to_open_again_and_goes_on():
    table = Table(up=False)
    table.rise(length_rule=LengthRule(limit=5, reopens=True))
    table.says(opening(1))
    table.answer()  # token 4 of the row, from its prompt of 3
    table.answer()
    asked = mail(table.answer(), Reopen)  # the 6th token is drawn by the short keys of 5; the 7th needs long ones
    assert asked == [Reopen(session=1, attempt=0, why="preempted", death=False)]
    table.says(opening(1, attempt=1, history=int32([3, 4, 5, 7, 7, 7])))
    while table.steps[0].batch.n_rows == 0:
        table.answer()  # the old row's closing
    batch = table.steps[0].batch
    assert (batch.position.tolist(), batch.length.tolist()) == ([0], [6])
    for _ in range(3):
        assert not mail(table.answer(), Reopen)


def test_a_preempted_session_is_asked_to_open_again():
    table = Table(up=False)
    for session in (1, 2):
        table.says(opening(session, history=int32(range(20, 28)), prompt_tokens=8))
    table.rise(kv_blocks=6)
    said = [message for _ in range(12) for message in mail(table.answer(), Reopen)]
    assert said == [Reopen(session=2, attempt=0, why="preempted", death=False)]


@pytest.mark.parametrize("shown", [0, 2])
def test_a_row_that_is_no_numbers_ends_with_an_error_that_says_so_and_alone(shown):
    table = Table(up=False)
    for session in (1, 2):
        table.says(opening(session, history=int32([session, 4, 5])))
    table.rise()
    for _ in range(shown):
        while not mail(table.answer(), Tokens):
            pass
    while not (refused := mail(effects := table.answer(broken=(1,)), OpenRefused)):
        pass
    assert (refused[0].session, refused[0].attempt, refused[0].refusal.code) == (1, 0, "not_finite")
    assert "not finite" in refused[0].refusal.message and refused[0].refusal.retry_after_s is None
    assert mail(effects, Reopen) == [] and table.broker.statistics("m")[2:] == (1, 0)
    for _ in range(12):
        if table.steps:
            assert mail(table.answer(), OpenRefused) == []
    assert table.broker.statistics("m") == (100, 100, 0, 0)


def test_a_row_on_blocks_of_others_is_first_computed_without_them_once():
    """Theirs may be the fault: it is opened again, shares nothing, and ends only if it is no numbers by itself."""
    table = Table()
    prompt = int32(range(10, 20))
    table.says(opening(1, history=prompt, prompt_tokens=10, max_tokens=1))
    table.answer()
    table.says(opening(2, history=prompt, prompt_tokens=10))
    assert table.steps[-1].batch.opened[0].cached_tokens == 8
    while not (asked := mail(table.answer(broken=(2,)), Reopen)):
        pass
    assert asked == [Reopen(session=2, attempt=0, why="preempted", death=False)]
    table.says(opening(3, history=prompt, prompt_tokens=10, max_tokens=1))
    table.says(opening(2, attempt=1, history=prompt, prompt_tokens=10))
    while not any(opened.attempt == 1 for step in table.steps for opened in step.batch.opened):
        table.answer()
    (again,) = [o for step in table.steps for o in step.batch.opened if o.attempt == 1]
    assert again.cached_tokens == 0, "although another has computed the same prompt meanwhile"
    refused = []
    while not refused:
        refused = mail(table.answer(broken=(2,)), OpenRefused)
    assert [(r.session, r.attempt, r.refusal.code) for r in refused] == [(2, 1, "not_finite")]
    while table.steps:
        table.answer()
    assert table.broker.statistics("m") == (100, 100, 0, 0) and not table.broker._faults


def starve(table):
    """The oldest step found no memory."""
    step = table.steps.pop(0)
    table.now_s += 0.01
    return table.tell(StepBack(StepResult(route=1, epoch=step.epoch, step=step.step, out_of_memory=True)))


def test_rows_of_a_step_without_memory_are_opened_again_and_go_on():
    table = Table(up=False)
    for session in (1, 2):
        table.says(opening(session, history=int32([session, 4, 5]), max_tokens=2))
    table.rise()
    effects = starve(table)
    assert mail(effects, Reopen) == [Reopen(session=s, attempt=0, why="preempted", death=False) for s in (1, 2)]
    for session in (1, 2):
        table.says(opening(session, attempt=1, history=int32([session, 4, 5]), max_tokens=2))
    told = []
    while table.steps:
        assert table.steps[0].batch.n_tokens <= 3
        told += [token for message in mail(table.answer(), Tokens) for token in message.session.tolist()]
    assert sorted(told) == [1, 1, 2, 2] and table.broker.statistics("m") == (100, 100, 0, 0)
    assert not table.broker._faults


@pytest.mark.parametrize("history", [[3], [3, 4, 5, 6, 7, 8, 9]], ids=["one token", "some"])
def test_a_row_that_never_finds_memory_ends_after_a_few_tries(history):
    table, attempt, refused = Table(), 0, []
    table.says(opening(1, history=int32(history), prompt_tokens=len(history)))
    while not refused:
        while table.steps[0].batch.n_rows == 0:
            table.answer()
        effects = starve(table)
        refused = mail(effects, OpenRefused)
        if mail(effects, Reopen):
            attempt += 1
            again = opening(1, attempt=attempt, history=int32(history), prompt_tokens=len(history))
            table.says(again)
    assert (refused[0].attempt, refused[0].refusal.code) == (attempt, "does_not_fit") and attempt < 5
    while table.steps:
        table.answer()
    assert table.broker.statistics("m") == (100, 100, 0, 0) and not table.broker._faults


def test_a_row_in_company_that_never_finds_memory_ends_too():
    """Even if steps never became smaller."""
    faults, row = RowFaults(), Row(row=1, key=RowKey("f", 1), open=opening(1), arrival=1)
    told = [faults.judge(row, "no memory") for _ in range(FAILURES_MAX)]
    assert told == [None] * (FAILURES_MAX - 1) + [NO_MEMORY]


def test_a_probe_that_finds_no_memory_says_not_ready():
    table = Table()
    table.says(ReadyRequest(ask=1), sender=ASKER)
    (told,) = mail(starve(table), ReadyReply, to=ASKER)
    assert not told.ready and "memory" in told.why


def test_a_frontend_that_is_lost_takes_its_rows_along():
    table = Table(max_running=2)
    other = Address("front-2", "sessions")
    table.says(opening(1))
    table.says(opening(1), sender=other)
    table.says(opening(2))
    table.tell(FrontendLost(peer=FRONT.peer))
    assert table.broker.statistics("m")[2:] == (1, 0)
    table.answer()
    assert mail(table.answer(), Tokens, to=other) != []


def test_a_model_that_is_unloaded_ends_its_sessions_with_the_cause():
    table = Table(max_running=1)
    table.says(opening(1))
    table.says(opening(2))
    gone = Refusal(code="bad_model", message="it lied")
    effects = table.tell(ModelGone(model_id="m", refusal=gone, forget=True))
    assert [(r.session, r.refusal) for r in mail(effects, OpenRefused)] == [(1, gone), (2, gone)]
    assert mail(effects, Reopen) == [], "who opens again now would hear another cause"
    assert CloseLink(1) in effects
    (refused,) = mail(table.says(opening(3)), OpenRefused)
    assert refused.refusal.code == "model_not_found"


def test_a_model_that_does_not_come_back_in_time_stays_wanted():
    table = Table(up=False)
    table.says(opening(1))
    late = Refusal(code="recovery_deadline", message="too late")
    effects = table.tell(ModelGone(model_id="m", refusal=late, forget=False))
    assert mail(effects, OpenRefused)[0].refusal == late
    assert table.says(opening(2)) == [] and table.broker.statistics("m")[3] == 1


def test_ready_is_proven_by_a_probe_token_and_then_known_for_a_while():
    table = Table()
    effects = table.says(ReadyRequest(ask=1), sender=ASKER)
    assert mail(effects, ReadyReply, to=ASKER) == []
    assert SetTimer(("probe", 1), PROBE_DEADLINE_S) in effects and len(table.steps) == 1
    assert table.says(ReadyRequest(ask=2), sender=ASKER) == [], "one probe serves all who ask"
    told = mail(table.answer(), ReadyReply, to=ASKER)
    assert [(t.ask, t.ready) for t in told] == [(1, True), (2, True)]
    (told,) = mail(table.says(ReadyRequest(ask=3), sender=ASKER), ReadyReply, to=ASKER)
    assert told.ready
    table.answer()
    table.now_s += READY_FOR_S + 1
    assert mail(table.says(ReadyRequest(ask=4), sender=ASKER), ReadyReply, to=ASKER) == []
    assert len(table.steps) == 1 and table.broker.statistics("m")[2] == 1


def test_a_probe_that_does_not_come_back_says_not_ready_and_leaves_no_row():
    table = Table()
    table.says(ReadyRequest(ask=1), sender=ASKER)
    (told,) = mail(table.tell(TimerFired(("probe", 1))), ReadyReply, to=ASKER)
    assert not told.ready and told.why and told.retry_after_s
    assert table.broker.statistics("m") == (100, 100, 0, 0)


def test_a_probe_that_is_no_numbers_says_not_ready_and_why():
    table = Table()
    for ask in (1, 2):
        table.says(ReadyRequest(ask=ask), sender=ASKER)
    effects = table.answer(broken=(1,))
    told = mail(effects, ReadyReply, to=ASKER)
    assert [(t.ask, t.ready) for t in told] == [(1, False), (2, False)] and "not finite" in told[0].why
    assert CancelTimer(("probe", 1)) in effects
    table.answer()  # the row's closing
    assert table.broker.statistics("m") == (100, 100, 0, 0)
    assert mail(table.says(ReadyRequest(ask=3), sender=ASKER), ReadyReply, to=ASKER) == [], "it is tried again"


def test_a_probe_on_a_falling_route_says_not_ready():
    table = Table()
    table.says(ReadyRequest(ask=1), sender=ASKER)
    effects = table.fall(death=True)
    assert [t.ready for t in mail(effects, ReadyReply, to=ASKER)] == [False]
    assert CancelTimer(("probe", 1)) in effects
    assert not any(isinstance(e, Send) and isinstance(e.message, Reopen) for e in effects)


def test_without_a_route_nobody_is_ready():
    (told,) = mail(Table(up=False).says(ReadyRequest(ask=1), sender=ASKER), ReadyReply, to=ASKER)
    assert (told.ready, told.why) == (False, "no route is up")
