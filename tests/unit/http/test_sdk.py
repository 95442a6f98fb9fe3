"""The official Python client against the app on a real socket: what its own stream helper makes of our events."""

import asyncio
import random

import openai
import pytest
import trio

from tests.unit.http.fake_cluster import spell
from tests.unit.http.real_server import Server

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
RUNS = 30
TEXTS = ("Grüße, Welt", "b", "und so weiter")


class RandomOrder:
    """The first pieces of the choices come out one after the other, in an order that a seed says."""

    def __init__(self, seed, n):
        self.order = random.Random(seed).sample(range(n), n)
        self.begun = [trio.Event() for _ in range(n)]

    async def __call__(self, request, number):
        choice = request.params.choice
        if number > 0:
            self.begun[choice].set()
            return
        place = self.order.index(choice)
        if place > 0:
            await self.begun[self.order[place - 1]].wait()


@pytest.fixture
def three(cluster):
    scripts = [spell(text) for text in TEXTS]
    cluster.script = lambda request, number: scripts[request.params.choice](request, number)
    return cluster


@pytest.fixture
def server(app, shutdown, nursery):
    yield Server(nursery, app, shutdown)
    shutdown.begun.set()


def check(completion):
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert [choice.message.content for choice in completion.choices] == list(TEXTS)
    assert {choice.message.role for choice in completion.choices} == {"assistant"}
    assert {choice.finish_reason for choice in completion.choices} == {"stop"}
    assert completion.usage.completion_tokens == sum(len(text.encode()) + 1 for text in TEXTS)


def ask_stream(client, **more):
    return client.chat.completions.stream(**CHAT, n=3, stream_options={"include_usage": True}, **more)


async def test_the_stream_helper_gets_every_choice_whichever_speaks_first(three, server):
    def run(client):
        with ask_stream(client, logprobs=True, top_logprobs=1) as stream:
            kinds = [event.type for event in stream]
            completion = stream.get_final_completion()
        check(completion)
        return kinds, [len(choice.logprobs.content) for choice in completion.choices]

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        for seed in range(RUNS):
            three.turn = RandomOrder(seed, 3)
            kinds, counts = await trio.to_thread.run_sync(run, client)
            assert kinds.count("content.done") == 3
            assert counts == [len(text.encode()) + 1 for text in TEXTS]


async def test_the_async_stream_helper_gets_every_choice_whichever_speaks_first(three, server):
    async def run():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            for seed in range(RUNS):
                three.turn = RandomOrder(seed, 3)
                async with ask_stream(client) as stream:
                    check(await stream.get_final_completion())

    await trio.to_thread.run_sync(asyncio.run, run())  # under Trio the client leaves generators open
