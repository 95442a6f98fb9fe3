"""A sampled token is columns as long as it travels with others, and one object from there to its reader."""

import numpy as np

from hydra.actors.client import GenerateRequest
from hydra.actors.core.machine import Received
from hydra.actors.core.names import BROKER
from hydra.actors.sessions.session import Begin, Session
from hydra.actors.sessions.sessions import Sessions, Show, StartGeneration
from hydra.protocol.batch import Logprobs, int32, token_ids
from hydra.protocol.messages.generations import Tokens
from hydra.protocol.sampled_token import SampledToken
from hydra.protocol.sampling import GREEDY

NAN = float("nan")
TOKENS = Tokens(
    session=int32([1, 2]),
    attempt=int32([0, 0]),
    position=int32([3, 3]),
    token=int32([7, 8]),
    finish=int32([0, 2]),
    cached=int32([0, 2]),
    logprobs=Logprobs(
        chosen=np.array([-0.5, NAN], np.float32),
        top_ids=int32([[7, -1], [-1, -1]]),
        top=np.array([[-0.5, NAN], [NAN, NAN]], np.float32),
    ),
)


def test_columns_come_apart_into_one_object_per_token():
    assert list(TOKENS.one_by_one()) == [
        (1, SampledToken(attempt=0, position=3, token=7, logprob=-0.5, top=((7, -0.5),))),
        (2, SampledToken(attempt=0, position=3, token=8, finish="length", cached_tokens=2)),
    ]


def test_a_session_shows_the_very_token_that_came():
    one = Session(
        session=7, model_id="m", prompt=token_ids([1, 2, 3]), max_tokens=9, params=GREEDY, stop_ids=(), max_replays=5
    )
    one.handle(Begin(), 0.0)
    token = SampledToken(attempt=0, position=3, token=7)
    (shown,) = one.handle(token, 1.0)
    assert shown is token


def test_each_session_gets_its_own():
    sessions = Sessions(max_replays=5)
    request = GenerateRequest(model_id="m", prompt=token_ids([1, 2, 3]), max_tokens=9, params=GREEDY, stop_ids=())
    for number in (1, 2):
        sessions.handle(StartGeneration(number, request), 0.0)
    shows = [effect for effect in sessions.handle(Received(BROKER, TOKENS), 1.0) if isinstance(effect, Show)]
    assert [(show.session, show.shown.token, show.shown.finish) for show in shows] == [(1, 7, None), (2, 8, "length")]
    assert len(sessions) == 1
