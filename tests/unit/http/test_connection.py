"""A kept connection: whatever an answer is, the next request on it gets its own; and no answer is lost in a reset."""

import gzip
import json

import attrs
import pytest
import trio
import trio.testing

from hydra.http.client_stream import LINGER_S, ClientStream
from hydra.http.request_body import WAIT_S
from hydra.protocol.refusal import Refusal
from hydra.simulation.asgi_client import exchange
from tests.unit.http.real_server import Client, Server, chunked

LIMIT = 100_000  # of the app, in bytes
TEXT = {"model": "m", "prompt": "hi", "max_tokens": 5}
FORMS = {
    "with a length": (lambda body: body, ()),
    "in chunks": (chunked, ("Transfer-Encoding: chunked",)),
    "after 100 Continue": (lambda body: body, ("Expect: 100-continue",)),
}
FULL = Refusal(code="queue_full", message="too many wait", retry_after_s=1.0)
NOBODY = Refusal(code="no_workers", message="nobody", retry_after_s=1.0)


@pytest.fixture
async def client(quick_app, shutdown, nursery):
    server = Server(nursery, quick_app, shutdown)
    async with await server.connect() as stream:
        with trio.fail_after(15):
            yield Client(stream)
    shutdown.begun.set()


def asked(n_bytes):
    """A good request, in so many bytes."""
    return json.dumps(TEXT).encode().ljust(n_bytes)


CASES = {
    "404, empty": ("POST", "/v1/foo", b"", 404),
    "404, small": ("POST", "/v1/foo", b"x" * 100, 404),
    "404, large": ("POST", "/v1/foo", b"x" * 90_000, 404),
    "404, larger than anything that is read": ("POST", "/v1/foo", b"x" * (LIMIT + 50_000), 404),
    "405": ("POST", "/v1/models", b"x" * 90_000, 405),
    "405 of another kind": ("PUT", "/v1/completions", asked(90_000), 405),
    "400": ("POST", "/v1/completions", b"x" * 90_000, 400),
    "404 of a GET with a body": ("GET", "/v1/models/none", b"x" * 90_000, 404),
    "413, a little too large": ("POST", "/v1/completions", asked(LIMIT + 1), 413),
    "413, a good deal too large": ("POST", "/v1/completions", asked(LIMIT + 90_000), 413),
    "429": ("POST", "/v1/completions", asked(90_000), 429),
}


@pytest.mark.parametrize(("encode", "headers"), FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize(("method", "path", "body", "status"), CASES.values(), ids=CASES.keys())
async def test_a_connection_outlives_a_refusal(client, cluster, method, path, body, status, encode, headers):
    cluster.script = lambda request, number: FULL
    for _ in range(2):
        await client.send(method, path, encode(body), headers)
        answered, found, content = await client.answer()
        assert (answered, found.get("connection")) == (status, None)
        assert set(json.loads(content)["error"]) == {"message", "type", "param", "code"}
    await client.send("GET", "/health")
    assert (await client.answer())[0] == 200


async def test_a_connection_outlives_a_503(client, cluster):
    cluster.script = lambda request, number: NOBODY
    await client.send("POST", "/v1/completions", asked(90_000))
    assert (await client.answer())[0] == 503
    await client.send("GET", "/health")
    assert (await client.answer())[0] == 200


async def test_an_answer_waits_for_a_body_that_is_on_its_way(client):
    body = b"x" * 90_000
    await client.send("POST", "/v1/foo", body[:100], length=len(body))
    await trio.testing.wait_all_tasks_blocked()
    await client.stream.send_all(body[100:])
    assert (await client.answer())[0] == 404
    await client.send("GET", "/health")
    assert (await client.answer())[0] == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/foo"])
@pytest.mark.parametrize(("encode", "headers"), FORMS.values(), ids=FORMS.keys())
async def test_a_body_far_beyond_the_limit_gets_its_answer_while_it_is_sent(client, path, encode, headers):
    body = encode(b"x" * 3_000_000)
    await client.send("POST", path, body[:1000], headers, length=len(body))
    await trio.testing.wait_all_tasks_blocked()
    for at in range(1000, len(body), 100_000):
        await client.stream.send_all(body[at : at + 100_000])
        await trio.testing.wait_all_tasks_blocked()
    status, found, content = await client.answer()
    assert (status, found["connection"]) == (413 if path == "/v1/completions" else 404, "close")
    assert json.loads(content)["error"]["message"]
    assert await client.rest() == b"", "and the connection ends"


async def test_whoever_talks_no_http_gets_its_answer_too(client):
    await client.stream.send_all(b"HELLO\r\n\r\n")
    await trio.testing.wait_all_tasks_blocked()
    await client.stream.send_all(b"x" * 1_000_000)
    status, found, _ = await client.answer()
    assert (status, found["connection"]) == (400, "close") and await client.rest() == b""


async def test_a_body_that_never_comes_costs_the_connection(quick_app, autojump_clock):
    began_s = trio.current_time()
    headers = [(b"content-length", b"90000")]
    async with exchange(quick_app, "POST", "/v1/foo", b"x", headers, body_ends=False) as answer:
        await answer.end()
    assert answer.status == 404 and answer.headers["connection"] == "close"
    assert trio.current_time() - began_s == WAIT_S


async def test_a_body_that_says_it_is_too_large_is_not_waited_for(quick_app, autojump_clock):
    began_s = trio.current_time()
    headers = [(b"content-length", b"3000000")]
    async with exchange(quick_app, "POST", "/v1/completions", b"x", headers, body_ends=False) as answer:
        await answer.end()
    assert answer.status == 413 and answer.headers["connection"] == "close"
    assert trio.current_time() == began_s


# ---------------------------------------------------------------- the end of a connection


@attrs.define(eq=False)
class Pipe:
    """Both ends of a connection in memory."""

    client: trio.abc.HalfCloseableStream
    server: ClientStream

    @classmethod
    def made(cls):
        client, server = trio.testing.memory_stream_pair()
        return cls(client, ClientStream(server, 30.0))


async def test_a_client_that_sends_for_ever_is_not_listened_to_for_ever(nursery, autojump_clock):
    pipe = Pipe.made()

    async def send():
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await pipe.client.send_all(b"x")
                await trio.sleep(0.1)

    nursery.start_soon(send)
    pipe.server.linger()
    began_s = trio.current_time()
    await pipe.server.send_eof()
    await pipe.server.aclose()
    assert trio.current_time() - began_s == LINGER_S


@pytest.mark.parametrize("read_by_another", [True, False])
async def test_what_comes_after_the_last_word_is_nobodys(nursery, autojump_clock, read_by_another):
    pipe, heard = Pipe.made(), []

    async def read():
        while data := await pipe.server.receive_some():
            heard.append(data)

    if read_by_another:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
    began_s = trio.current_time()
    async with trio.open_nursery() as closing:
        pipe.server.linger()
        closing.start_soon(pipe.server.aclose)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            await pipe.client.send_all(b"more")
            await trio.testing.wait_all_tasks_blocked()
        await pipe.client.send_eof()
    assert heard == [] and trio.current_time() == began_s, "it is closed as soon as the client is done"


async def test_an_idle_connection_is_closed_at_once(nursery, autojump_clock):
    pipe = Pipe.made()

    async def read():
        with pytest.raises(trio.ClosedResourceError):
            await pipe.server.receive_some()

    nursery.start_soon(read)
    await trio.testing.wait_all_tasks_blocked()
    began_s = trio.current_time()
    await pipe.server.aclose()
    assert trio.current_time() == began_s


# ---------------------------------------------------------------- what a route does not take


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip", "x" * 500])
async def test_an_encoded_body_is_a_415(client, coding):
    await client.send("POST", "/v1/completions", gzip.compress(asked(50)), [f"Content-Encoding: {coding}"])
    status, headers, content = await client.answer()
    error = json.loads(content)["error"]
    assert (status, error["code"], headers["accept-encoding"]) == (415, "unsupported_media_type", "identity")
    assert coding[:100] in error["message"] and len(error["message"]) < 300


async def test_no_encoding_at_all_is_one_too(client):
    await client.send("POST", "/v1/completions", asked(50), ["Content-Encoding: identity"])
    assert (await client.answer())[0] == 200


async def test_who_asks_for_a_websocket_gets_an_answer(client):
    more = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "X-Request-Id: mine"]
    await client.send("GET", "/v1/models", b"", [*more, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="])
    status, headers, content = await client.answer()
    assert (status, headers["x-request-id"]) == (404, "mine") and "websocket" in json.loads(content)["error"]["message"]
