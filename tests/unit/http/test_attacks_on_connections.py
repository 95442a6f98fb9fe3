"""What somebody with a raw socket can do to the server: it harms nobody but its own connection."""

import json
import socket

import pytest
import trio
import trio.testing

from tests.unit.http.real_server import Client, Server, read_all, read_until

TEXT = {"model": "m", "prompt": "hi", "max_tokens": 5}
POST = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODY = json.dumps(TEXT)
CHUNKED = f"{len(BODY):x}\r\n{BODY}\r\n0\r\n"


@pytest.fixture
async def server(quick_app, shutdown, nursery):
    with trio.fail_after(15):
        yield Server(nursery, quick_app, shutdown)
        shutdown.begun.set()


# ---------------------------------------------------------------- bytes that two readers could cut differently

MALFORMED = {
    "a length beside an encoding": (
        POST + f"Content-Length: {len(BODY)}\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNKED}\r\n", 400,
    ),
    "two lengths": (POST + f"Content-Length: {len(BODY)}\r\nContent-Length: {len(BODY) + 1}\r\n\r\n{BODY}", 400),
    "the same length twice": (POST + f"Content-Length: {len(BODY)}\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}", 400),
    "a length of thousands of digits": (POST + "Content-Length: " + "0" * 5000 + "2\r\n\r\n{}", 400),
    "two encodings": (POST + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED, 400),
    "an encoding that nobody has": (POST + "Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKED, 501),
    "an encoding in 1.0": (POST.replace("1.1", "1.0") + "Transfer-Encoding: chunked\r\n\r\n" + CHUNKED, 400),
    "bare line feeds": ("GET /health HTTP/1.1\nHost: localhost\n\n", 400),
    "one bare line feed": ("GET /health HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n", 400),
    "a bare line feed at the end": ("GET /health HTTP/1.1\r\nHost: localhost\r\n\n", 400),
    "a bare carriage return": ("GET /health HTTP/1.1\r\nHost: localhost\rX: y\r\n\r\n", 400),
    "bare line feeds after the last chunk": (POST + "Transfer-Encoding: chunked\r\n\r\n" + CHUNKED + "X: y\n\n", 400),
    "a folded header": ("GET /health HTTP/1.1\r\nHost: localhost\r\nX: y\r\n z\r\n\r\n", 400),
    "a blank before the colon": ("GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
    "version 1.2": ("GET /health HTTP/1.2\r\nHost: localhost\r\n\r\n", 505),
    "version 0.9": ("GET /health HTTP/0.9\r\nHost: localhost\r\n\r\n", 505),
    "version 3.0": ("GET /health HTTP/3.0\r\nHost: localhost\r\n\r\n", 505),
    "no version": ("GET /health\r\n\r\n", 400),
    "HTTP/2 that was not agreed on": ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "no host": ("GET /health HTTP/1.1\r\n\r\n", 400),
    "two hosts": ("GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", 400),
    "an endless head": ("GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + "y" * 200_000, 431),
    "TLS": ("\x16\x03\x01\x02\x00\x01", 400),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "status"), MALFORMED.values(), ids=MALFORMED.keys())
async def test_what_is_no_request_is_refused_in_json(server, cluster, sent, status):
    client = Client(await server.connect())
    await client.stream.send_all(sent.encode("latin-1"))
    answered, headers, body = await client.answer()
    error = json.loads(body)["error"]
    assert answered == status and set(error) == {"message", "type", "param", "code"} and error["message"]
    assert (headers["content-type"], headers["connection"]) == ("application/json", "close")
    assert headers["x-request-id"] and len(error["message"]) < 300
    await client.stream.send_eof()
    assert await client.rest() == b"" and cluster.requests == []
    await client.stream.aclose()


async def test_a_head_that_comes_byte_by_byte_is_a_request(server):
    client = Client(await server.connect())
    for byte in b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n":
        await client.stream.send_all(bytes([byte]))
    assert (await client.answer())[0] == 200
    await client.stream.aclose()


# ---------------------------------------------------------------- connections that nobody uses


async def test_a_connection_that_its_client_has_closed_is_gone(nursery, quick_app, shutdown, monkeypatch):
    """Whether it was used before or not, and however its end falls together with that of its last answer."""
    ended = []
    monkeypatch.setattr("hydra.http.serve.Connection.run", noting(ended))
    server = Server(nursery, quick_app, shutdown)
    with trio.fail_after(10):  # an idle one has thirty seconds
        for _ in range(20):
            await (await server.connect()).aclose()
            kept = await server.connect()
            await kept.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await read_until(kept, b'"ok"}')
            await kept.aclose()
            half = await server.connect()
            await half.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await half.send_eof()
            await read_all(half)
            await half.aclose()
        while len(ended) < 60:
            await trio.testing.wait_all_tasks_blocked(0.01)
        shutdown.begun.set()
        await server.ended.wait()


def noting(ended):
    from hydra.http.connection import Connection

    run = Connection.run

    async def run_and_note(self):
        await run(self)
        ended.append(self)

    return run_and_note


async def test_idle_connections_make_room_for_a_new_one(nursery, quick_app, cluster, shutdown):
    cluster.gate = trio.Event()
    server = Server(nursery, quick_app, shutdown, connections_max=4)
    with trio.fail_after(10):
        busy = await server.post(TEXT | {"stream": True})
        await read_until(busy, b'"G"')
        idle = [await server.connect() for _ in range(12)]
        client = Client(await server.connect())
        await client.send("GET", "/health")
        assert (await client.answer())[0] == 200
        cluster.gate.set()
        await read_until(busy, b"[DONE]")
        for stream in [*idle, client.stream, busy]:
            await stream.aclose()
        shutdown.begun.set()
        await server.ended.wait()


# ---------------------------------------------------------------- protocols that are not spoken


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "foo"])
async def test_an_upgrade_is_not_taken_up(server, upgrade):
    client = Client(await server.connect())
    more = [f"Upgrade: {upgrade}", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__"]
    for _ in range(2):
        await client.send("GET", "/health", headers=more)
        status, headers, body = await client.answer()
        assert status == (404 if upgrade == "websocket" else 200) and json.loads(body)
        assert "upgrade" not in headers
    await client.stream.aclose()


async def test_a_client_that_resets_at_once_harms_nobody(server):
    for _ in range(5):
        raw = socket.create_connection(("127.0.0.1", server.port))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        raw.close()
    client = Client(await server.connect())
    await client.send("GET", "/health")
    assert (await client.answer())[0] == 200
    await client.stream.aclose()
