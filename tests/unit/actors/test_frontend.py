"""A generation's reader: handed what came, told of a silence, and of nothing else."""

from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from hydra.actors.client import GenerateRequest
from hydra.actors.core.facts import Joined
from hydra.actors.core.identity import Identity
from hydra.actors.core.machine import Received
from hydra.actors.core.names import ASKS, BROKER, SESSIONS
from hydra.actors.families.frontend import GENERATION_SILENCE_MAX_S, SLOT_LOOK_EVERY_S, Frontend, FrontendParts
from hydra.protocol.batch import int32
from hydra.protocol.messages.generations import Tokens
from hydra.protocol.refusal import RefusalError
from hydra.protocol.sampling import GREEDY
from tests.unit.actors.silent_spoke import SilentSpoke

IDENTITY = Identity(node_id="frontend", role="frontend", host="here", pid=1)
REQUEST = GenerateRequest(model_id="m", prompt=[1, 2, 3], max_tokens=100, params=GREEDY, stop_ids=())


@asynccontextmanager
async def standing_frontend():
    frontend = Frontend(FrontendParts(identity=IDENTITY, spoke=SilentSpoke()))
    async with trio.open_nursery() as nursery:
        await nursery.start(frontend.run)
        yield frontend
        nursery.cancel_scope.cancel()


def tell(frontend, position, token, finish=0):
    """The Broker, of the first session."""
    column = {"session": 1, "attempt": 0, "position": position, "token": token, "finish": finish, "cached": 0}
    tokens = Tokens(**{name: int32([value]) for name, value in column.items()})
    frontend.actor_host.post(SESSIONS, Received(BROKER, tokens))


async def test_a_generation_that_hears_nothing_ends_with_a_timeout(autojump_clock):
    async with standing_frontend() as frontend, frontend.generate(REQUEST) as answer:
        began_s = trio.current_time()
        with pytest.raises(RefusalError) as caught:
            await anext(answer)
        assert caught.value.refusal.code == "timeout"
        assert (
            GENERATION_SILENCE_MAX_S
            <= trio.current_time() - began_s
            <= GENERATION_SILENCE_MAX_S + 2 * SLOT_LOOK_EVERY_S
        )
        with pytest.raises(StopAsyncIteration):
            await anext(answer)


async def test_every_token_ends_a_silence(autojump_clock):
    async with standing_frontend() as frontend, frontend.generate(REQUEST) as answer:
        for number in range(4):
            await trio.sleep(GENERATION_SILENCE_MAX_S - 2 * SLOT_LOOK_EVERY_S)
            tell(frontend, 3 + number, 40 + number)
            assert [token.token for token in await anext(answer)] == [40 + number]


async def test_a_reader_that_was_away_finds_all_that_came_meanwhile(autojump_clock):
    async with standing_frontend() as frontend, frontend.generate(REQUEST) as answer:
        tell(frontend, 3, 40)
        tell(frontend, 4, 41, 1)
        await trio.sleep(2 * GENERATION_SILENCE_MAX_S)
        assert [(token.token, token.finish) for token in await anext(answer)] == [(40, None), (41, "stop")]
        with pytest.raises(StopAsyncIteration):
            await anext(answer)


async def test_a_question_that_is_too_large_is_refused_and_nobody_is_expelled(autojump_clock):
    async with standing_frontend() as frontend:
        frontend.actor_host.post(ASKS, Joined(welcome=None))
        said = dict(frontend.membership.gateway._said)
        with pytest.raises(RefusalError) as caught:
            await frontend.load_model(
                model_path="x" * (1 << 21), model_id=None, total_layers=None, dtype=None, wait=False
            )
        assert caught.value.refusal.code == "invalid_value" and "LoadModel" in caught.value.refusal.message
        assert frontend.membership.gateway._said == said, "it left no hole in the count"


async def test_a_request_that_is_too_large_is_refused_and_the_others_go_on(autojump_clock):
    large = attrs.evolve(REQUEST, stop_ids=tuple(range((1 << 17) + 1)))
    async with standing_frontend() as frontend, frontend.generate(REQUEST) as others:
        async with frontend.generate(large) as answer:
            with pytest.raises(RefusalError) as caught:
                await anext(answer)
        assert caught.value.refusal.code == "invalid_value"
        tell(frontend, 3, 40)
        assert [token.token for token in await anext(others)] == [40]


async def test_the_first_token_of_each_answer_is_timed_and_no_other(autojump_clock):
    async with standing_frontend() as frontend, frontend.generate(REQUEST):
        await trio.sleep(0.75)
        tell(frontend, 3, 40)
        await trio.sleep(30)
        tell(frontend, 4, 41)
        sample = frontend._first_tokens.sample(("frontend", "f"))
        assert (sample.count, sample.value) == (1, pytest.approx(0.75)) and dict(sample.buckets)[1.0] == 1
