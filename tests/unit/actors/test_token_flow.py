"""Which gaps between tokens are pauses, and what a session notes of them."""

import pytest

from hydra.actors.client import GenerateRequest
from hydra.actors.core.machine import Received, Tell
from hydra.actors.sessions.session import Orphaned
from hydra.actors.sessions.sessions import REFUSAL_EVERY_S, Sessions, StartGeneration
from hydra.actors.sessions.token_flow import STALL_S, TokenFlow
from hydra.protocol.batch import int32
from hydra.protocol.ids import Address
from hydra.protocol.messages.generations import OpenRefused, Reopen, Tokens
from hydra.protocol.refusal import Refusal
from hydra.protocol.sampling import GREEDY

BROKER = Address("coordinator", "broker")
REQUEST = GenerateRequest(
    model_id="m", prompt=[901, 902, 903], max_tokens=50, params=GREEDY, stop_ids=(), response_id="chatcmpl-x"
)


def pauses(*at_s):
    flow = TokenFlow()
    flow.begin(0.0)
    return [pause for time_s in at_s if (pause := flow.token(time_s)) is not None]


def test_only_what_is_long_for_people_and_for_this_session_is_a_stall():
    assert pauses(30.0, 30.1, 30.2, 30.2 + STALL_S) == [], "the first token's wait is no stall, nor is a short gap"
    assert pauses(1.0, 1.1, 1.2, 3.2) == [pytest.approx(2.0)]
    assert pauses(0.0, 2.0, 4.0, 6.0, 8.0) == [], "a slow model: the usual gap"
    assert pauses(0.0, 0.1, 9.1, 9.2, 11.2) == [pytest.approx(9.0), pytest.approx(2.0)], "a pause is nothing usual"


def test_an_interruption_counts_from_the_last_token_however_often_it_is_repeated():
    flow = TokenFlow()
    flow.begin(0.0)
    flow.token(1.0)
    assert flow.interrupt(1.5) == 0.5 and flow.interrupt(2.5) == 1.5
    assert flow.token(3.0) == 2.0 and flow.token(3.1) is None


class Table:
    """A frontend's sessions, and what they noted."""

    def __init__(self):
        self.sessions, self.noted = Sessions(5), []

    def tell(self, event, now_s):
        effects = self.sessions.handle(event, now_s)
        self.noted += [effect.fact for effect in effects if isinstance(effect, Tell)]

    def hears(self, message, now_s):
        self.tell(Received(BROKER, message), now_s)

    def token(self, number, now_s, attempt=0, session=1):
        columns = {name: int32([value]) for name, value in {
            "session": session, "attempt": attempt, "position": 3 + number, "token": 7, "finish": 0, "cached": 0,
        }.items()}  # fmt: skip
        self.hears(Tokens(**columns), now_s)


def test_a_session_notes_its_interruption_its_replay_and_the_pause():
    table = Table()
    table.tell(StartGeneration(1, REQUEST), 0.0)
    table.token(0, 1.0)
    table.token(1, 1.1)
    table.hears(Reopen(session=1, attempt=0, why="epoch"), 1.2)
    table.token(2, 3.1, attempt=1)
    waits, asks, goes_on = table.noted
    assert {entry.session for entry in table.noted} == {1} and {entry.response_id for entry in table.noted} == {
        "chatcmpl-x"
    }
    assert (waits.kind, waits.tokens, waits.took_s) == ("session_interrupted", 2, pytest.approx(0.1))
    assert (asks.kind, asks.tokens) == ("session_reopened", 5)
    assert (goes_on.kind, goes_on.tokens, goes_on.took_s) == ("session_resumed", 5, pytest.approx(2.0))
    assert not any("90" in str(entry) for entry in table.noted), "nothing of the prompt"


def test_preemption_is_noted_only_where_a_reader_saw_it():
    table = Table()
    table.tell(StartGeneration(1, REQUEST), 0.0)
    table.token(0, 1.0)
    table.token(1, 1.1)
    table.hears(Reopen(session=1, attempt=0, why="preempted"), 1.1)
    table.token(2, 1.5, attempt=1)
    assert table.noted == []
    table.hears(Reopen(session=1, attempt=1, why="preempted"), 1.5)
    table.token(3, 4.5, attempt=2)
    assert [(entry.kind, entry.took_s, entry.tokens) for entry in table.noted] == [("session_resumed", 3.0, 6)]


def test_a_lost_coordinator_is_an_interruption_also_while_it_is_waited_out():
    table = Table()
    table.tell(StartGeneration(1, REQUEST), 0.0)
    session = table.sessions._sessions[1]
    for now_s in (1.0, 2.0, 3.0):
        table.noted += [e.fact for e in session.handle(Orphaned(), now_s) if isinstance(e, Tell)]
    kinds = [entry.kind for entry in table.noted]
    assert kinds == ["session_interrupted", "session_reopened"] * 2 + ["session_interrupted"]


def test_refusals_at_the_door_are_noted_once_a_second_and_counted():
    table = Table()
    refusal = Refusal(code="queue_full", message="the queue is full")
    for number in range(1, 10):
        table.tell(StartGeneration(number, REQUEST), 0.0)
    for number in range(1, 9):
        table.hears(OpenRefused(session=number, attempt=0, refusal=refusal), 0.1)
    table.hears(OpenRefused(session=9, attempt=0, refusal=refusal), 0.1 + REFUSAL_EVERY_S)
    assert [(e.kind, e.session, e.count, e.reason) for e in table.noted] == [
        ("session_refused", 1, 1, "the queue is full"),
        ("session_refused", 9, 8, "the queue is full"),
    ]


def test_an_answer_that_was_begun_is_never_left_out():
    table = Table()
    refusal = Refusal(code="recovery_deadline", message="too late")
    for number in (1, 2):
        table.tell(StartGeneration(number, REQUEST), 0.0)
        table.token(0, 0.5, session=number)
        table.hears(OpenRefused(session=number, attempt=0, refusal=refusal), 1.0)
    assert [(entry.kind, entry.session) for entry in table.noted] == [("session_refused", 1), ("session_refused", 2)]
