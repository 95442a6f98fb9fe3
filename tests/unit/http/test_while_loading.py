"""While nothing can answer: the process is well, says why it is not ready, and requests wait or are refused."""

import attrs
import pytest

from hydra.http.app import make_app
from hydra.simulation.asgi_client import ask, exchange
from tests.unit.http.conftest import tokenizers_of

TEXT = {"model": "m", "prompt": "hi", "max_tokens": 5}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(params=["loading", "ready", "degraded"])
def state(request, cluster):
    cluster.card = attrs.evolve(cluster.card, state=request.param)
    return request.param


@pytest.mark.parametrize("body", [TEXT, CHAT | {"stream": True}])
@pytest.mark.parametrize("choice", ["wait", "refuse"])
async def test_a_request_to_a_model_that_is_loaded_waits_or_is_refused(cluster, shutdown, words, state, choice, body):
    app = make_app(
        cluster,
        max_body_bytes=1000,
        shutdown=shutdown,
        tokenizers=tokenizers_of(lambda *_: words),
        while_loading=choice,
    )
    answer = await ask(app, "POST", "/v1/completions" if "prompt" in body else "/v1/chat/completions", body)
    if choice == "wait" or state != "loading":
        assert answer.status == 200 and len(cluster.requests) == 1
        return
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (503, "loading") and int(answer.headers["retry-after"]) > 0
    assert "while_loading" in error["message"] and cluster.requests == []


async def test_a_model_whose_files_are_not_read_yet_is_on_its_way_and_not_unknown(quick_app, cluster):
    """A client that is told 404 gives up; one that is told 503 comes again."""
    cluster.gone = True
    answer = await ask(quick_app, "POST", "/v1/completions", TEXT)
    assert (answer.status, answer.json()["error"]["code"]) == (503, "loading") and answer.headers["retry-after"]
    assert (await ask(quick_app, "POST", "/v1/completions", TEXT | {"model": "other"})).status == 404
    await cluster.cancel_job("load-1-1")
    assert (await ask(quick_app, "POST", "/v1/completions", TEXT)).status == 404


async def test_a_stream_that_waits_for_a_load_is_kept_awake_by_pings(quick_app, cluster, autojump_clock):
    cluster.card, spoken = attrs.evolve(cluster.card, state="loading"), cluster.script
    cluster.script = lambda request, number: 60.0 if number == 0 else spoken(request, number - 1)
    async with exchange(quick_app, "POST", "/v1/completions", TEXT | {"stream": True}) as answer:
        await answer.until(lambda so_far: so_far.body.count(b": ping") == 3)
        assert answer.status == 200
        await answer.end()
    assert answer.events()[-1] == "[DONE]"


async def test_the_process_is_well_and_says_why_it_is_not_ready(quick_app, cluster, shutdown):
    cluster.is_ready = False
    ready = await ask(quick_app, "GET", "/ready")
    assert (ready.status, ready.json()["error"]["message"], ready.headers["retry-after"]) == (503, "asleep", "2")
    cluster.silent = True
    ready = await ask(quick_app, "GET", "/ready")
    assert ready.status == 503 and ready.json()["error"]["message"] and ready.headers["retry-after"]
    cluster.silent, cluster.is_ready = False, True
    assert (await ask(quick_app, "GET", "/ready")).status == 200
    shutdown.begun.set()
    ready = await ask(quick_app, "GET", "/ready")
    assert (ready.status, ready.json()["error"]["code"]) == (503, "shutting_down")
    assert (await ask(quick_app, "GET", "/health")).status == 200
