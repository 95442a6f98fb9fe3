"""The id of a request: on every answer, in every log line, the client's own if it is a decent one."""

import openai
import pytest
import structlog
import trio
from structlog.contextvars import get_contextvars, merge_contextvars

from hydra.http.request_id import RequestId
from hydra.protocol.refusal import Refusal
from hydra.simulation.asgi_client import ask, exchange
from tests.unit.http.fake_cluster import spell
from tests.unit.http.real_server import Server

TEXT = {"model": "m", "prompt": "hi", "max_tokens": 5}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
FULL = Refusal(code="queue_full", message="too many wait", retry_after_s=1.0)
MINE = (b"x-request-id", b"my:request_7.b-C")

ANSWERS = {
    "a completion": ("POST", "/v1/completions", TEXT, 200),
    "a stream": ("POST", "/v1/chat/completions", CHAT | {"stream": True}, 200),
    "models": ("GET", "/v1/models", None, 200),
    "metrics": ("GET", "/metrics", None, 200),
    "options": ("OPTIONS", "/v1/completions", None, 200),
    "a load that goes on": ("POST", "/api/models/load", {"model_path": "/x", "wait": False}, 202),
    "a bad request": ("POST", "/v1/completions", b"{", 400),
    "no route": ("POST", "/v1/foo", TEXT, 404),
    "no model": ("POST", "/v1/completions", TEXT | {"model": "other"}, 404),
    "no such method": ("DELETE", "/v1/models", None, 405),
    "a large request": ("POST", "/v1/completions", b"x" * 100_001, 413),
}


@pytest.mark.parametrize(("method", "path", "body", "status"), ANSWERS.values(), ids=ANSWERS.keys())
async def test_every_answer_has_one(quick_app, method, path, body, status):
    fresh = [(await ask(quick_app, method, path, body)) for _ in range(2)]
    assert {answer.status for answer in fresh} == {status}
    ids = {answer.headers["x-request-id"] for answer in fresh}
    assert len(ids) == 2 and all(len(one) == 36 and one.startswith("req-") for one in ids)
    mine = await ask(quick_app, method, path, body, [MINE])
    assert (mine.status, mine.headers["x-request-id"]) == (status, "my:request_7.b-C")


@pytest.mark.parametrize(("said", "status"), [(FULL, 429), (RuntimeError("a bug"), 500)])
@pytest.mark.parametrize("stream", [True, False])
async def test_every_failure_has_one(quick_app, cluster, said, status, stream):
    cluster.script = lambda request, number: said
    answer = await ask(quick_app, "POST", "/v1/completions", TEXT | {"stream": stream}, [MINE])
    assert (answer.status, answer.headers["x-request-id"]) == (status, "my:request_7.b-C")


@pytest.mark.parametrize(
    "given",
    [
        [b""],
        [b"x" * 129],
        [b"two words"],
        [b"a\tb"],
        [b"<script>"],
        ["ü".encode()],
        [b"\xff"],
        [b"one", b"another"],
    ],
)
async def test_an_indecent_one_is_replaced(quick_app, given):
    answer = await ask(quick_app, "GET", "/health", None, [(b"X-Request-ID", value) for value in given])
    assert answer.status == 200 and answer.headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize("given", [b"x", b"x" * 128, b"-"])
async def test_a_decent_one_is_kept(quick_app, given):
    answer = await ask(quick_app, "GET", "/health", None, [(b"X-Request-ID", given)])
    assert answer.headers["x-request-id"] == given.decode()


async def test_a_completion_has_an_id_of_its_own(quick_app):
    answer = await ask(quick_app, "POST", "/v1/completions", TEXT, [MINE])
    assert answer.json()["id"].startswith("cmpl-")


async def test_log_lines_bear_it(quick_app, cluster):
    seen = []

    def script(request, number):
        seen.append(get_contextvars().get("request_id"))
        return RuntimeError("a bug")

    cluster.script = script
    with structlog.testing.capture_logs([merge_contextvars]) as lines:
        await ask(quick_app, "POST", "/v1/completions", TEXT, [MINE])
    assert seen == ["my:request_7.b-C"] and get_contextvars().get("request_id") is None
    assert [line["request_id"] for line in lines if line["log_level"] == "error"] == ["my:request_7.b-C"]


async def test_two_requests_at_once_do_not_mix(quick_app, cluster):
    seen, spoken = [], spell("ab")

    def script(request, number):
        seen.append((request.max_tokens, get_contextvars()["request_id"]))
        return spoken(request, number)

    cluster.script = script
    async with trio.open_nursery() as nursery:
        for n in (3, 4, 5):
            body, named = TEXT | {"max_tokens": n}, [(b"x-request-id", f"r{n}".encode())]
            nursery.start_soon(ask, quick_app, "POST", "/v1/completions", body, named)
    assert set(seen) == {(n, f"r{n}") for n in (3, 4, 5)}


# ---------------------------------------------------------------- an app that fails where no route catches it


async def test_a_failure_before_the_answer_is_one_with_an_id():
    async def app(scope, receive, send):
        raise RuntimeError("the secret of /etc/passwd")

    answer = await ask(RequestId(app), "GET", "/", None, [MINE])
    assert (answer.status, answer.headers["x-request-id"]) == (500, "my:request_7.b-C")
    assert answer.json()["error"]["code"] == "internal_error" and b"secret" not in answer.body


async def test_a_failure_within_the_answer_is_not_made_to_look_like_an_end():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("a bug")

    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="a bug")):
        async with exchange(RequestId(app), "GET", "/") as answer:
            await answer.end()
    assert answer.body == b"half" and not answer.ended


# ---------------------------------------------------------------- in the eyes of the official client


async def test_the_official_client_shows_it(quick_app, shutdown, nursery):
    server = Server(nursery, quick_app, shutdown)

    def run():
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            good = client.chat.completions.create(**CHAT, extra_headers={"X-Request-Id": "mine"})
            with pytest.raises(openai.NotFoundError) as caught:
                client.completions.create(model="other", prompt="x")
        return good._request_id, caught.value.request_id

    good, bad = await trio.to_thread.run_sync(run)
    assert good == "mine" and bad.startswith("req-")
    shutdown.begun.set()
