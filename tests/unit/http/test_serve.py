"""The server on a real socket: it stops when told to, whatever its clients do."""

import json
import socket

import pytest
import trio
import trio.testing

from tests.unit.http.fake_cluster import spell
from tests.unit.http.real_server import Server, read_all, read_until

TEXT = {"model": "m", "prompt": "hi", "max_tokens": 50, "stream": True}


@pytest.fixture
def huge(cluster):
    """Answers that no socket buffer can hold."""
    spoken = spell("x" * 100, finish="length")
    cluster.script = lambda request, number: spoken(request, number % 99)
    return cluster


async def test_an_open_stream_goes_on_while_the_server_drains(app, cluster, shutdown, nursery):
    cluster.gate = trio.Event()
    server = Server(nursery, app, shutdown, drain_timeout=20.0)
    with trio.fail_after(15):
        stream = await server.post(TEXT)
        await read_until(stream, b'"G"')
        shutdown.begun.set()
        await trio.testing.wait_all_tasks_blocked()
        cluster.gate.set()
        assert b"[DONE]" in await read_until(stream, b"0\r\n\r\n")
        await stream.aclose()
        await server.ended.wait()


async def test_a_stream_that_outlasts_the_drain_is_told_so(app, cluster, shutdown, nursery):
    cluster.gate = trio.Event()
    server = Server(nursery, app, shutdown, drain_timeout=0.8)
    with trio.fail_after(15):
        stream = await server.post(TEXT)
        await read_until(stream, b'"G"')
        shutdown.begun.set()
        rest = await read_all(stream)
        await server.ended.wait()
        await stream.aclose()
    assert b"shutting_down" in rest and b"[DONE]" not in rest and cluster.open == 0


async def test_a_client_that_never_reads_holds_nobody(app, huge, shutdown, nursery):
    server = Server(nursery, app, shutdown, drain_timeout=1.0, write_deadline_s=0.5)
    with trio.fail_after(30):
        raw = trio.socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await raw.connect(("127.0.0.1", server.port))
        content = json.dumps(TEXT).encode()
        await raw.send(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        await raw.send(b"Content-Length: %d\r\n\r\n" % len(content) + content)
        while not huge.open:
            await trio.lowlevel.checkpoint()
        while huge.open:  # its generation ends although it neither reads nor leaves
            await trio.testing.wait_all_tasks_blocked(0.01)
        shutdown.begun.set()
        await server.ended.wait()
        raw.close()


async def test_an_idle_connection_does_not_hold_the_shutdown(app, shutdown, nursery):
    server = Server(nursery, app, shutdown, drain_timeout=60.0)
    with trio.fail_after(15):
        idle = await trio.open_tcp_stream("127.0.0.1", server.port)
        await trio.testing.wait_all_tasks_blocked()
        shutdown.begun.set()
        await server.ended.wait()
        await idle.aclose()


async def test_a_connection_that_is_kept_after_an_answer_does_not_hold_the_shutdown(app, shutdown, nursery):
    server = Server(nursery, app, shutdown, drain_timeout=60.0)
    with trio.fail_after(15):
        kept = await server.post({**TEXT, "stream": False})
        await read_until(kept, b'"finish_reason"')
        again = await server.post(TEXT)
        await read_until(again, b"0\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        shutdown.begun.set()
        await server.ended.wait()
        await kept.aclose()
        await again.aclose()


async def test_a_client_that_closes_its_socket_ends_its_generation(app, cluster, shutdown, nursery):
    cluster.gate = trio.Event()
    server = Server(nursery, app, shutdown)
    with trio.fail_after(15):
        stream = await server.post(TEXT)
        await read_until(stream, b'"G"')
        assert cluster.open == 1
        await stream.aclose()
        while cluster.open:
            await trio.lowlevel.checkpoint()
        shutdown.begun.set()
        await server.ended.wait()
