"""A streamed answer's life: its status waits for the first token, and its end is always a true one."""

import pytest
import trio
import trio.testing

from hydra.protocol.refusal import Refusal
from hydra.simulation.asgi_client import ask, exchange
from hydra.text.cache import TokenizerCache
from tests.unit.http.conftest import threadless
from tests.unit.http.fake_cluster import spell, tokens_of

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
TEXT = {"model": "m", "prompt": "hi", "max_tokens": 50, "stream": True}
LOST = Refusal(code="replay_limit", message="lost too often")
FOUR = {"message", "type", "param", "code"}


def text_of(events):
    choices = [event["choices"][0] for event in events if event != "[DONE]" and event.get("choices")]
    return "".join(choice.get("text", choice.get("delta", {}).get("content")) or "" for choice in choices)


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
async def test_a_stream_tells_everything_once(app, cluster, path, body):
    answer = await ask(app, "POST", path, body)
    events = answer.events()
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream")
    assert text_of(events) == "Grüße, Welt" and events[-1] == "[DONE]"
    finishes = [event["choices"][0]["finish_reason"] for event in events[:-1]]
    assert finishes[-1] == "stop" and set(finishes[:-1]) <= {None}
    assert cluster.open == 0


async def test_the_first_token_is_not_held_back(app, cluster):
    cluster.gate = trio.Event()
    async with exchange(app, "POST", "/v1/chat/completions", CHAT) as answer:
        await answer.until(lambda seen: seen.events())
        assert text_of(answer.events()) == "G"
        cluster.gate.set()
        await answer.end()
    assert text_of(answer.events()) == "Grüße, Welt"


@pytest.mark.parametrize("n", [1, 3])
async def test_a_chat_begins_with_the_role_of_every_choice(app, cluster, n):
    async def turn(request, number):
        if number == 0 and request.params.choice == 0:
            await trio.testing.wait_all_tasks_blocked()  # the others speak first

    cluster.turn = turn
    answer = await ask(app, "POST", "/v1/chat/completions", {**CHAT, "n": n, "return_token_ids": True})
    first = [event["choices"] for event in answer.events()[:n]]
    role = {"role": "assistant", "content": ""}
    expected = {"delta": role, "logprobs": None, "finish_reason": None, "token_ids": []}
    assert first == [[{"index": index, **expected}] for index in range(n)]
    later = [event["choices"][0]["delta"] for event in answer.events()[n:-1]]
    assert not any("role" in delta for delta in later)


async def test_a_refusal_before_the_first_token_is_a_status(app, cluster):
    cluster.script = lambda request, number: Refusal(code="no_workers", message="nobody", retry_after_s=3.0)
    answer = await ask(app, "POST", "/v1/chat/completions", CHAT)
    assert answer.status == 503 and answer.headers["retry-after"] == "3"
    assert set(answer.json()["error"]) == FOUR and answer.json()["error"]["code"] == "no_workers"


async def test_a_refusal_afterwards_is_an_event_behind_all_that_was_said(app, cluster):
    spoken = spell("abc")
    cluster.script = lambda request, number: spoken(request, number) if number < 3 else LOST
    events = (await ask(app, "POST", "/v1/completions", TEXT)).events()
    assert text_of(events[:-1]) == "abc", "nothing that came before the failure is lost"
    assert set(events[-1]["error"]) == FOUR and events[-1]["error"]["code"] == "replay_limit"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_bug_is_a_500_that_tells_nothing(app, cluster, stream):
    cluster.script = lambda request, number: RuntimeError("the secret of /etc/passwd")
    answer = await ask(app, "POST", "/v1/completions", {**TEXT, "stream": stream})
    assert answer.status == 500 and answer.json()["error"]["code"] == "internal_error"
    assert b"secret" not in answer.body and b"Traceback" not in answer.body


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_its_generation(app, cluster, stream):
    cluster.gate = trio.Event()
    async with exchange(app, "POST", "/v1/completions", {**TEXT, "stream": stream}) as answer:
        with trio.fail_after(5):
            while cluster.pieces == 0 or (stream and not answer.body):
                await trio.lowlevel.checkpoint()
        assert cluster.open == 1
        answer.leave()
        with trio.fail_after(5):
            while cluster.open:
                await trio.lowlevel.checkpoint()
    assert cluster.pieces == 1


async def test_a_client_that_leaves_before_the_first_token(app, cluster):
    cluster.script = lambda request, number: 1000.0
    async with exchange(app, "POST", "/v1/completions", TEXT) as answer:
        with trio.fail_after(5):
            while not cluster.open:
                await trio.lowlevel.checkpoint()
        answer.leave()
    assert cluster.open == 0 and answer.status is None


async def test_silence_is_filled_with_pings_and_no_stream_is_cut_after_a_minute(quick_app, cluster, autojump_clock):
    spoken = spell("ab")
    cluster.script = lambda request, number: (spoken(request, 0), 200.0, spoken(request, 1), spoken(request, 2))[number]
    answer = await ask(quick_app, "POST", "/v1/completions", TEXT)
    assert text_of(answer.events()) == "ab" and answer.events()[-1] == "[DONE]"
    assert answer.body.count(b": ping\n\n") == 13, "one per 15 s of silence"


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
async def test_the_first_byte_does_not_wait_for_a_token_for_ever(quick_app, cluster, autojump_clock, path, body):
    spoken = spell("ab")
    cluster.script = lambda request, number: 100.0 if number == 0 else spoken(request, number - 1)
    began_s = trio.current_time()
    async with exchange(quick_app, "POST", path, body) as answer:
        await answer.until(lambda seen: seen.status)
        assert trio.current_time() - began_s == 10.0 and answer.status == 200
        await answer.until(lambda seen: seen.body)
        assert answer.body == b": ping\n\n" and trio.current_time() - began_s == 10.0
        await answer.end()
    assert text_of(answer.events()) == "ab" and answer.events()[-1] == "[DONE]"
    assert answer.body.startswith(b": ping\n\n" * 7 + b"data: "), "after 10 s, then one per 15 s of silence"


async def test_a_token_within_the_time_of_the_first_byte_comes_without_a_ping(quick_app, cluster, autojump_clock):
    spoken = spell("ab")
    cluster.script = lambda request, number: 9.9 if number == 0 else spoken(request, number - 1)
    answer = await ask(quick_app, "POST", "/v1/completions", TEXT)
    assert text_of(answer.events()) == "ab" and b"ping" not in answer.body


@pytest.mark.parametrize(("wait_s", "status"), [(9.9, 503), (10.1, 200), (40.0, 200)])
async def test_a_late_refusal_is_an_event_and_an_early_one_a_status(quick_app, cluster, autojump_clock, wait_s, status):
    refusal = Refusal(code="no_workers", message="nobody", retry_after_s=3.0)
    cluster.script = lambda request, number: wait_s if number == 0 else refusal
    answer = await ask(quick_app, "POST", "/v1/chat/completions", CHAT)
    assert answer.status == status and b"[DONE]" not in answer.body and cluster.open == 0
    errors = [answer.json()] if status == 503 else answer.events()
    assert [error["error"]["code"] for error in errors] == ["no_workers"]
    assert set(errors[0]["error"]) == FOUR


async def test_a_bug_after_the_first_byte_is_an_event_that_tells_nothing(quick_app, cluster, autojump_clock):
    cluster.script = lambda request, number: 20.0 if number == 0 else RuntimeError("the secret of /etc/passwd")
    answer = await ask(quick_app, "POST", "/v1/completions", TEXT)
    assert [event["error"]["code"] for event in answer.events()] == ["internal_error"] and b"secret" not in answer.body


async def test_the_time_of_the_first_byte_begins_with_the_request(cluster, shutdown, words, autojump_clock):
    """Words that are still being read count too."""

    async def load(path, template):
        await trio.sleep(12.0)
        return words

    spoken = spell("ab")
    cluster.script = lambda request, number: 5.0 if number == 0 else spoken(request, number - 1)
    slow_app = threadless(cluster, shutdown, TokenizerCache(load))
    began_s = trio.current_time()
    async with exchange(slow_app, "POST", "/v1/completions", TEXT) as answer:
        await answer.until(lambda seen: seen.body)
        assert trio.current_time() - began_s == 12.0 and answer.body == b": ping\n\n"


async def test_a_client_that_leaves_after_the_first_byte_ends_its_generation(quick_app, cluster, autojump_clock):
    cluster.script = lambda request, number: 1000.0
    async with exchange(quick_app, "POST", "/v1/completions", TEXT) as answer:
        await answer.until(lambda seen: seen.body)
        assert cluster.open == 1
        answer.leave()
    assert cluster.open == 0


async def test_an_answer_in_one_piece_may_take_longer_than_a_minute(quick_app, cluster, autojump_clock):
    spoken = spell("ab")
    cluster.script = lambda request, number: 500.0 if number == 0 else spoken(request, number - 1)
    answer = await ask(quick_app, "POST", "/v1/completions", {**TEXT, "stream": False})
    assert answer.status == 200 and answer.json()["choices"][0]["text"] == "ab"


async def test_several_answers_share_one_stream(app, cluster):
    answer = await ask(app, "POST", "/v1/completions", {**TEXT, "n": 3, "stream_options": {"include_usage": True}})
    events = answer.events()
    for index in range(3):
        own = [e for e in events[:-2] if e["choices"][0]["index"] == index]
        assert text_of(own) == "Grüße, Welt" and own[-1]["choices"][0]["finish_reason"] == "stop"
    assert sorted(request.params.choice for request in cluster.requests) == [0, 1, 2]
    assert all(event["usage"] is None for event in events[:-2])
    tokens = len("Grüße, Welt".encode()) + 1
    assert events[-2]["choices"] == [] and events[-2]["usage"]["completion_tokens"] == 3 * tokens


@pytest.mark.parametrize("size", [1, 4, 64])
async def test_a_stop_string_ends_the_answer_and_the_generation(app, cluster, size):
    whole = spell("one STOP two")

    def script(request, number):
        ids = [whole(request, n)[0].token for n in range(number * size, min(13, (number + 1) * size))]
        return tokens_of(ids, "stop" if (number + 1) * size >= 13 else None)

    cluster.script = script
    events = (await ask(app, "POST", "/v1/completions", {**TEXT, "stop": ["STOP", "zzz"]})).events()
    assert text_of(events) == "one " and events[-2]["choices"][0]["finish_reason"] == "stop"
    assert cluster.open == 0


async def test_after_the_shutdown_began_nothing_new_is_taken(app, shutdown):
    shutdown.begun.set()
    answer = await ask(app, "POST", "/v1/chat/completions", CHAT)
    assert answer.status == 503 and answer.json()["error"]["code"] == "shutting_down" and answer.headers["retry-after"]


@pytest.mark.parametrize("stream", [True, False])
async def test_the_last_call_is_an_error_and_no_made_up_end(app, cluster, shutdown, stream):
    cluster.gate = trio.Event()
    async with exchange(app, "POST", "/v1/completions", {**TEXT, "stream": stream}) as answer:
        with trio.fail_after(5):
            while cluster.pieces == 0 or (stream and not answer.body):
                await trio.lowlevel.checkpoint()
        shutdown.begun.set()
        await trio.testing.wait_all_tasks_blocked()
        assert not answer.ended, "an open answer has the time of the drain"
        shutdown.last_call.set()
        await answer.end()
    told = answer.events()[-1] if stream else answer.json()
    assert told["error"]["code"] == "shutting_down" and set(told["error"]) == FOUR
    assert b"[DONE]" not in answer.body and cluster.open == 0
    assert answer.status == (200 if stream else 503)


async def test_the_drain_calls_shortly_before_its_end(shutdown, autojump_clock):
    called_s = None

    async def listen():
        nonlocal called_s
        await shutdown.last_call.wait()
        called_s = trio.current_time() - began_s

    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await shutdown.drain(30.0)
    assert (called_s, trio.current_time() - began_s) == (28.0, 30.0)
