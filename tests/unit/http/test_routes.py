"""How a path may be written, and what is said of one that leads nowhere."""

import pytest

from hydra.http.request_path import plain_path
from hydra.simulation.asgi_client import ask
from tests.unit.http.real_server import Client, Server

TEXT = {"model": "m", "prompt": "hi", "max_tokens": 5}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
ROUTES = [
    ("POST", "/v1/chat/completions", CHAT),
    ("POST", "/v1/completions", TEXT),
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/m", None),
    ("GET", "/health", None),
    ("GET", "/metrics", None),
    ("GET", "/api/cluster/status", None),
    ("POST", "/api/cluster/rebalance", None),
    ("POST", "/api/models/load", {"model_path": "/x"}),
    ("POST", "/api/models/unload", {"model_id": "m"}),
    ("GET", "/api/models/jobs", None),
    ("GET", "/api/models/jobs/load-1-1", None),
    ("DELETE", "/api/models/jobs/load-1-1", None),
]
WAYS = {
    "as it is": lambda path: path,
    "a slash at the end": lambda path: f"{path}/",
    "a base URL with a slash": lambda path: f"/{path}",
    "a base URL with /v1/": lambda path: path.replace("/v1/", "/v1//"),
    "as a proxy asks": lambda path: f"http://here:8080{path}/",
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize(("method", "path", "body"), ROUTES, ids=[path for _, path, _ in ROUTES])
async def test_a_path_may_have_slashes_too_many(quick_app, method, path, body, way):
    assert (await ask(quick_app, method, way(path), body)).status == 200


def test_a_path_is_plain_whatever_it_was():
    assert plain_path("/") == plain_path("") == plain_path("//") == "/"
    assert plain_path("/v1/models/org/name/") == "/v1/models/org/name"
    assert plain_path("http://[/v1") == "/http:/[/v1", "no URL, and no route"


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE", "BREW"])
async def test_a_path_that_leads_nowhere_is_named(quick_app, method):
    answer = await ask(quick_app, method, "/v1/chat/completion", TEXT)
    assert answer.status == 404 and answer.json()["error"] == {
        "message": f"no route {method} /v1/chat/completion",
        "type": "invalid_request_error",
        "param": None,
        "code": "not_found",
    }


async def test_a_strange_path_is_shown_safely(quick_app):
    answer = await ask(quick_app, "GET", "/v1/\x1b[31m\n" + "ü" + "x" * 10_000)
    message = answer.json()["error"]["message"]
    assert message.startswith("no route GET /v1/?[31m???xxx") and message.endswith("x...") and len(message) < 250


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", "OPTIONS, POST"),
        ("HEAD", "/v1/chat/completions", "OPTIONS, POST"),
        ("POST", "/v1/models", "GET, HEAD, OPTIONS"),
        ("PATCH", "/api/models/jobs/x", "DELETE, GET, HEAD, OPTIONS"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(quick_app, method, path, allowed):
    answer = await ask(quick_app, method, path)
    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    assert answer.json()["error"]["message"] == f"{method} is not possible at {path}; allowed: {allowed}"
    assert answer.json()["error"]["code"] == "method_not_allowed"


async def test_options_and_head_are_answered(quick_app, shutdown, nursery):
    server = Server(nursery, quick_app, shutdown)
    async with await server.connect() as stream:
        client = Client(stream)
        await client.send("OPTIONS", "/v1/chat/completions")
        status, headers, _ = await client.answer()
        assert status == 200 and set(headers["allow"].split(", ")) == {"OPTIONS", "POST"}
        for path, status in (("/v1/models", 200), ("/v1/foo", 404), ("/v1/completions", 405)):
            await client.send("HEAD", path)
            assert (await client.answer(has_body=False))[0] == status
        await client.send("GET", "/health")
        assert (await client.answer())[0] == 200, "no body of theirs is left in the connection"
    shutdown.begun.set()


async def test_what_is_too_large_is_told_the_limit(quick_app):
    answer = await ask(quick_app, "POST", "/v1/completions", b"x" * 100_001)
    assert answer.status == 413 and "100000 bytes" in answer.json()["error"]["message"]
