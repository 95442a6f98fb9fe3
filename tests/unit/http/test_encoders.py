"""One large request keeps nobody else waiting: the loop turns while it is encoded, and few are encoded at a time."""

import operator
import threading
import time

import attrs
import pytest
import trio
import trio.testing

from hydra.http import openai_request
from hydra.http.app import make_app
from hydra.http.encoders import SMALL_BYTES, Encoders, EncoderThreads
from hydra.http.json_size import GROUPS_MAX, NAMES_MAX, QUOTES_MAX
from hydra.http.openai_request import parse_json
from hydra.protocol.refusal import RefusalError
from hydra.simulation.asgi_client import ask, exchange
from hydra.text.tokenizer_files import encode_text, encode_with_places
from tests.unit.http.conftest import tokenizers_of

TEXT = {"model": "m", "prompt": "hi", "max_tokens": 5}
LARGE = {**TEXT, "prompt": "x" * 2 * SMALL_BYTES}


@pytest.fixture
def wide(cluster):
    """With room for all of it."""
    cluster.card = attrs.evolve(cluster.card, max_model_len=1 << 20)
    return cluster


@pytest.mark.parametrize("work", [encode_text, encode_with_places])
async def test_the_loop_turns_while_a_text_is_encoded(words, nursery, work):
    """Its longest pause is nothing beside the time that the encoding takes. A busy machine has three tries."""
    turns: list[float] = []

    async def turn():
        while True:
            await trio.lowlevel.checkpoint()
            turns.append(time.perf_counter())

    def longest_pause():
        began_s = time.perf_counter()
        work(words.tokenizer, "hello world " * 10_000)
        ended_s = time.perf_counter()
        within = [at_s for at_s in turns if began_s < at_s < ended_s]
        return max(map(operator.sub, [*within, ended_s], [began_s, *within])) / (ended_s - began_s)

    nursery.start_soon(turn)
    assert min([await Encoders().run(1 << 20, longest_pause) for _ in range(3)]) < 0.5
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_text_that_cannot_fit_is_never_encoded(quick_app, cluster, monkeypatch, path):
    monkeypatch.setattr("hydra.text.tokenizer.encode_text", never)
    monkeypatch.setattr("hydra.text.control_tokens.encode_text", never)
    monkeypatch.setattr("hydra.text.control_tokens.encode_with_places", never)
    body = {"model": "m", "prompt": "x" * 50_000, "messages": [{"role": "user", "content": "x" * 50_000}]}
    del body["messages" if path == "/v1/completions" else "prompt"]
    answer = await ask(quick_app, "POST", path, body)
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (400, "context_length_exceeded") and cluster.requests == []
    assert error["param"] == ("prompt" if path == "/v1/completions" else "messages")


def never(*_, **__):
    raise AssertionError("it was encoded")


# ---------------------------------------------------------------- few at a time, and not for ever


class Gate:
    """Work that ends when the test lets it."""

    def __init__(self):
        self.open = threading.Event()
        self.begun = 0

    def __call__(self):
        self.begun += 1
        assert self.open.wait(10)


@pytest.fixture
def gate():
    made = Gate()
    yield made
    made.open.set()


async def test_a_full_lane_refuses_and_the_other_goes_on(wide, shutdown, words, nursery, gate):
    encoders = Encoders(large=EncoderThreads(threads=1, waiting_max=1))
    app = make_app(
        wide, max_body_bytes=1 << 20, shutdown=shutdown, tokenizers=tokenizers_of(lambda *_: words), encoders=encoders
    )
    nursery.start_soon(encoders.run, 1 << 20, gate)
    async with exchange(app, "POST", "/v1/completions", LARGE) as waiting:
        while not encoders.large.full:
            await trio.lowlevel.checkpoint()
        refused = await ask(app, "POST", "/v1/completions", LARGE)
        assert (refused.status, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) > 0
        assert (await ask(app, "POST", "/v1/completions", TEXT)).status == 200
        waiting.leave()
        await waiting.end()
    assert not encoders.large.full, "who has left waits no more"
    gate.open.set()
    assert (await ask(app, "POST", "/v1/completions", LARGE)).status == 200


async def test_who_waits_too_long_is_told_so_and_the_thread_is_kept_until_it_is_done(gate):
    encoders = Encoders(large=EncoderThreads(threads=1, waiting_max=1), deadline_s=0.01)
    for _ in range(2):
        with pytest.raises(RefusalError) as caught:
            await encoders.run(1 << 20, gate)
        assert caught.value.refusal.code == "timeout"
    assert encoders.large.limiter.borrowed_tokens == 1 and gate.begun == 1
    gate.open.set()
    while encoders.large.limiter.borrowed_tokens:
        await trio.testing.wait_all_tasks_blocked(0.001)


async def test_a_prompt_in_ids_is_written_beside_the_loop(app, cluster, words, monkeypatch):
    threads = []
    monkeypatch.setattr(type(words), "decode", lambda *_, **__: threads.append(threading.current_thread()) or "said")
    answer = await ask(app, "POST", "/v1/completions", {**TEXT, "prompt": [1, 2], "echo": True, "max_tokens": 0})
    assert answer.json()["choices"][0]["text"] == "said" and threads != [threading.main_thread()]


# ---------------------------------------------------------------- what is counted before it is parsed


def many(item, n):
    return b"[" + b",".join([item] * n) + b"]"


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (many(b"[]", GROUPS_MAX), "lists and objects"),
        (many(b"{}", GROUPS_MAX), "lists and objects"),
        (many(b'""', QUOTES_MAX // 2 + 1), "texts and names"),
        (b'{"":0' + b',"":0' * NAMES_MAX + b"}", "names"),
        (many(b'"\\\\"', QUOTES_MAX), "texts and names"),
    ],
)
def test_a_body_of_too_many_parts_is_not_parsed(value, what):
    with pytest.raises(RefusalError) as caught:
        parse_json(b'{"a":' + value + b"}")
    assert caught.value.refusal.code == "invalid_json" and what in caught.value.refusal.message


@pytest.mark.parametrize(
    "value",
    [
        many(b"1", 200_000),
        b'"' + b"[{:,\\n" * 50_000 + b'"',
        b'"' + b'\\"[{:' * 50_000 + b'"',
        b'"' + b"\\\\" * 9 + b'"',
    ],
    ids=["numbers", "structure in a text", "quotes in a text", "backslashes"],
)
def test_a_long_text_and_many_numbers_are_parsed(value):
    assert parse_json(b'{"a":' + value + b',"b":1}')["b"] == 1


@pytest.mark.parametrize("end", [b'"', b'\\"', b'"\\', b"\\"])
def test_a_text_that_does_not_end_is_looked_at_once(end):
    with pytest.raises(RefusalError):
        parse_json(b'{"a":"' + b'\\"' * 200_000 + end)


async def test_a_large_body_is_parsed_beside_the_loop(app, monkeypatch):
    threads = []
    real = openai_request.check_size
    monkeypatch.setattr(
        openai_request, "check_size", lambda body: threads.append(threading.current_thread()) or real(body)
    )
    await ask(app, "POST", "/v1/completions", LARGE)
    await ask(app, "POST", "/api/models/unload", {"model_id": "x" * 2 * SMALL_BYTES})
    assert len(threads) == 2 and threading.main_thread() not in threads
