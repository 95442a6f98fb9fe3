"""A generation's reader: handed what came, told of a silence, and of nothing else."""

from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from hydra.actors.client import GenerateRequest
from hydra.actors.core.facts import Joined
from hydra.actors.core.machine import Received
from hydra.actors.core.names import ASKS, BROKER, SESSIONS
from hydra.actors.families.frontend import LOOK_EVERY_S, SILENCE_MAX_S, Frontend, FrontendParts
from hydra.protocol.batch import int32
from hydra.protocol.messages.generations import FINISH_NONE, FINISH_STOP, Tokens
from hydra.protocol.refusal import RefusalError
from hydra.protocol.sampling import GREEDY
from tests.unit.actors.silent_spoke import SilentSpoke

REQUEST = GenerateRequest(model_id="m", prompt_ids=[1, 2, 3], max_tokens=100, params=GREEDY, stop_ids=())


@asynccontextmanager
async def standing_frontend():
    frontend = Frontend(FrontendParts(node_id="frontend", spoke=SilentSpoke(), host="here", pid=1))
    async with trio.open_nursery() as nursery:
        await nursery.start(frontend.run)
        yield frontend
        nursery.cancel_scope.cancel()


def tell(frontend, position, token, finish=FINISH_NONE):
    """The Broker, of the first session."""
    column = {"session": 1, "attempt": 0, "position": position, "token": token, "finish": finish, "cached": 0}
    tokens = Tokens(**{name: int32([value]) for name, value in column.items()})
    frontend.actor_host.post(SESSIONS, Received(BROKER, tokens))


async def test_a_generation_that_hears_nothing_ends_with_a_timeout(autojump_clock):
    async with standing_frontend() as frontend, frontend.generate(REQUEST) as pieces:
        began_s = trio.current_time()
        with pytest.raises(RefusalError) as caught:
            await anext(pieces)
        assert caught.value.refusal.code == "timeout"
        assert SILENCE_MAX_S <= trio.current_time() - began_s <= SILENCE_MAX_S + 2 * LOOK_EVERY_S
        with pytest.raises(StopAsyncIteration):
            await anext(pieces)


async def test_every_token_ends_a_silence(autojump_clock):
    async with standing_frontend() as frontend, frontend.generate(REQUEST) as pieces:
        for number in range(4):
            await trio.sleep(SILENCE_MAX_S - 2 * LOOK_EVERY_S)
            tell(frontend, 3 + number, 40 + number)
            assert (await anext(pieces)).token_ids == (40 + number,)


async def test_a_reader_that_was_away_finds_all_that_came_meanwhile(autojump_clock):
    async with standing_frontend() as frontend, frontend.generate(REQUEST) as pieces:
        tell(frontend, 3, 40)
        tell(frontend, 4, 41, FINISH_STOP)
        await trio.sleep(2 * SILENCE_MAX_S)
        piece = await anext(pieces)
        assert (piece.token_ids, piece.finish) == ((40, 41), "stop")
        with pytest.raises(StopAsyncIteration):
            await anext(pieces)


async def test_a_question_that_is_too_large_is_refused_and_nobody_is_expelled(autojump_clock):
    async with standing_frontend() as frontend:
        frontend.actor_host.post(ASKS, Joined(welcome=None))
        said = dict(frontend._gateway._said)
        with pytest.raises(RefusalError) as caught:
            await frontend.load_model(
                model_path="x" * (1 << 21), model_id=None, total_layers=None, dtype=None, wait=False
            )
        assert caught.value.refusal.code == "invalid_value" and "LoadModel" in caught.value.refusal.message
        assert frontend._gateway._said == said, "it left no hole in the count"


async def test_a_request_that_is_too_large_is_refused_and_the_others_go_on(autojump_clock):
    large = attrs.evolve(REQUEST, stop_ids=tuple(range((1 << 17) + 1)))
    async with standing_frontend() as frontend, frontend.generate(REQUEST) as others:
        async with frontend.generate(large) as pieces:
            with pytest.raises(RefusalError) as caught:
                await anext(pieces)
        assert caught.value.refusal.code == "invalid_value"
        tell(frontend, 3, 40)
        assert (await anext(others)).token_ids == (40,)


async def test_the_first_token_of_each_answer_is_timed_and_no_other(autojump_clock):
    async with standing_frontend() as frontend, frontend.generate(REQUEST):
        await trio.sleep(0.75)
        tell(frontend, 3, 40)
        await trio.sleep(30)
        tell(frontend, 4, 41)
        sample = frontend._first_tokens.sample(("frontend", "f"))
        assert (sample.count, sample.value) == (1, pytest.approx(0.75)) and dict(sample.buckets)[1.0] == 1
