"""A web page cannot operate the cluster of whoever looks at it: who comes in, and what the others are told."""

import socket

import pytest
from werkzeug.datastructures import Headers

from hydra.http.app import make_app
from hydra.http.door import Door, NotJson, _check_type
from hydra.simulation.asgi_client import ask
from tests.unit.http.conftest import tokenizers_of

TEXT = {"model": "m", "prompt": "hi", "max_tokens": 5}
CHANGES = {
    "/v1/completions": ("POST", TEXT),
    "/v1/chat/completions": ("POST", {"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
    "/api/models/load": ("POST", {"model_path": "a", "model_id": "m"}),
    "/api/models/unload": ("POST", {"model_id": "m"}),
    "/api/cluster/rebalance": ("POST", None),
    "/api/models/jobs/load-1-1": ("DELETE", None),
}
EVIL = b"http://evil.example"


def headers(**named):
    return [(name.replace("_", "-").encode(), value) for name, value in named.items()]


@pytest.fixture
def open_app(cluster, shutdown, words):
    """For names and pages that the operator has listed."""
    door = Door.of("bound.example", ["LLM.example.com", ".corp.example"], ["https://chat.example.com/"])
    return make_app(
        cluster, max_body_bytes=100_000, shutdown=shutdown, tokenizers=tokenizers_of(lambda *_: words), door=door
    )


def untouched(cluster):
    return not cluster.requests and not cluster.unloaded and cluster.job.state == "loading"


# ---------------------------------------------------------------- where a request comes from


@pytest.mark.parametrize("path", CHANGES)
@pytest.mark.parametrize("origin", [EVIL, b"null", b"http://localhost:3000", b"https://localhost.evil.example", b"x"])
async def test_a_page_of_another_origin_changes_nothing(quick_app, cluster, path, origin):
    method, body = CHANGES[path]
    answer = await ask(quick_app, method, path, body, headers(origin=origin))
    error = answer.json()["error"]
    assert (answer.status, error["type"]) == (403, "permission_error") and untouched(cluster)
    assert "allowed_origins" in error["message"] and "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (b"http://localhost:8080", b"localhost:8080"),
        (b"http://127.0.0.1", b"127.0.0.1:80"),
        (b"https://192.168.0.10", b"192.168.0.10"),
        (b"http://[::1]:8080", b"[::1]:8080"),
    ],
)
async def test_a_page_that_this_server_serves_may_ask_it(quick_app, origin, host):
    assert (await ask(quick_app, "POST", "/v1/completions", TEXT, headers(origin=origin, host=host))).status == 200


@pytest.mark.parametrize("path", CHANGES)
async def test_a_program_sends_no_origin(quick_app, path):
    method, body = CHANGES[path]
    assert (await ask(quick_app, method, path, body)).status in (200, 202)


# ---------------------------------------------------------------- by which name it is asked


@pytest.mark.parametrize("path", [*CHANGES, "/v1/models", "/api/cluster/status", "/api/models/jobs", "/nowhere"])
@pytest.mark.parametrize(
    "host", [b"evil.example:8080", b"127.0.0.1.evil.example", b"localhost.evil.example", b"2130706433"]
)
async def test_a_name_that_a_stranger_could_point_here_is_not_answered(quick_app, cluster, path, host):
    method, body = CHANGES.get(path, ("GET", None))
    same = b"http://" + host
    for sent in (headers(host=host), headers(host=host, origin=same)):
        answer = await ask(quick_app, method, path, body, sent)
        error = answer.json()["error"]
        assert (answer.status, error["code"]) == (403, "access_denied") and untouched(cluster)
        assert "allowed_hosts" in error["message"] and host.decode() in error["message"]


OWN = socket.gethostname().encode()


@pytest.mark.parametrize(
    "host",
    [
        b"localhost", b"LocalHost:8080", b"localhost.:8080", b"app.localhost", b"127.0.0.1:8080", b"[::1]:8080",
        b"192.168.0.10", b"[fe80::1]", b"host.docker.internal:80", b"host.containers.internal", OWN, OWN + b":80", b"",
    ],
)  # fmt: skip
async def test_addresses_and_this_machines_own_names_are_known(quick_app, host):
    assert (await ask(quick_app, "POST", "/v1/completions", TEXT, headers(host=host))).status == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
async def test_probes_may_use_any_name(quick_app, path):
    assert (await ask(quick_app, "GET", path, headers=headers(host=b"hydra.namespace.svc"))).status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"llm.example.com", 200),
        (b"bound.example:8080", 200),
        (b"a.corp.example", 200),
        (b"corp.example", 403),
        (b"evilcorp.example", 403),
        (b"b.llm.example.com", 403),
    ],
)
async def test_names_can_be_listed(open_app, host, status):
    assert (await ask(open_app, "POST", "/v1/completions", TEXT, headers(host=host))).status == status


# ---------------------------------------------------------------- as what its body is sent


TYPES = {
    "text/plain": 415, "application/x-www-form-urlencoded": 415, "multipart/form-data; boundary=x": 415, "": 415,
    "application/octet-stream": 415, "text/json": 415, "application/json": 200, "application/json; charset=utf-8": 200,
    "Application/JSON": 200, "application/vnd.api+json": 200,
}  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
async def test_a_body_is_sent_as_json(quick_app, cluster, kind):
    answer = await ask(quick_app, "POST", "/v1/completions", TEXT, headers(content_type=kind.encode()))
    assert answer.status == TYPES[kind]
    if answer.status == 415:
        message = answer.json()["error"]["message"]
        assert "-H 'Content-Type: application/json'" in message and kind in message and untouched(cluster)
        assert answer.headers["accept-post"] == "application/json"


@pytest.mark.parametrize("sent", [{}, {"Content-Length": "0"}])
def test_what_has_no_body_needs_no_type(sent):
    """As of `curl -X POST`."""
    _check_type(Headers(sent))
    for more in ({"Content-Length": "2"}, {"Transfer-Encoding": "chunked"}, {"Content-Type": "text/plain"}):
        with pytest.raises(NotJson):
            _check_type(Headers(sent | more))


async def test_a_page_that_is_listed_is_let_in_by_its_browser(open_app):
    chat = b"https://chat.example.com"
    asks = headers(
        origin=chat, access_control_request_method=b"POST",
        access_control_request_headers=b"content-type,authorization",
        access_control_request_private_network=b"true",
    )  # fmt: skip
    answer = await ask(open_app, "OPTIONS", "/v1/completions", headers=asks)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, chat.decode())
    assert answer.headers["access-control-allow-headers"] == "content-type,authorization"
    assert "POST" in answer.headers["access-control-allow-methods"] and answer.headers["vary"] == "Origin"
    assert answer.headers["access-control-allow-private-network"] == "true"
    for body, status in ((TEXT, 200), (TEXT | {"stream": True}, 200), ({}, 400)):
        answer = await ask(open_app, "POST", "/v1/completions", body, headers(origin=chat))
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, chat.decode())
        assert "x-request-id" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("origin", [EVIL, b"http://chat.example.com", b"https://chat.example.com.evil.example"])
async def test_one_that_is_not_listed_is_not(open_app, cluster, origin):
    asks = headers(origin=origin, access_control_request_method=b"POST")
    answer = await ask(open_app, "OPTIONS", "/v1/completions", headers=asks)
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert (await ask(open_app, "POST", "/v1/completions", TEXT, headers(origin=origin))).status == 403
    assert untouched(cluster)
