"""The line of the real theatre: whole, cut, healed."""

import math
from functools import partial

import trio

from hydra.protocol.loopback import LOOPBACK
from scenarios.processes import hold_port
from scenarios.tcp_proxy import TcpProxy


async def echo(stream):
    async for some in stream:
        await stream.send_all(some)
    await stream.aclose()


async def dial(proxy):
    return await trio.open_tcp_stream(proxy.at.host, proxy.at.port, happy_eyeballs_delay=math.inf)


async def line(nursery):
    [listener] = await nursery.start(partial(trio.serve_tcp, echo, 0, host=LOOPBACK))
    proxy = TcpProxy(hold_port(), LOOPBACK, listener.socket.getsockname()[1])
    await nursery.start(proxy.run)
    return proxy


async def read(stream, n_bytes):
    seen = b""
    while len(seen) < n_bytes:
        seen += await stream.receive_some()
    return seen


async def says_nothing(stream):
    """For longer than everything in this loop takes otherwise."""
    with trio.move_on_after(0.2) as scope:
        await stream.receive_some()
    return scope.cancelled_caught


async def test_bytes_pass_both_ways_and_a_cut_keeps_them(nursery):
    with trio.fail_after(10):
        proxy = await line(nursery)
        stream = await dial(proxy)
        await stream.send_all(b"one")
        assert await read(stream, 3) == b"one"
        proxy.cut()
        await stream.send_all(b"two")
        assert await says_nothing(stream)
        proxy.heal()
        assert await read(stream, 3) == b"two", "nothing is lost, and the connection is the same"
        await stream.aclose()


async def test_a_connection_that_is_made_during_a_cut_leads_somewhere_after_it(nursery):
    with trio.fail_after(10):
        proxy = await line(nursery)
        proxy.cut()
        stream = await dial(proxy)
        await stream.send_all(b"early")
        assert await says_nothing(stream)
        proxy.heal()
        assert await read(stream, 5) == b"early"
        await stream.aclose()


async def test_who_dials_nobody_sees_the_connection_close(nursery):
    with trio.fail_after(10):
        nobody = hold_port()
        proxy = TcpProxy(hold_port(), LOOPBACK, nobody.port)
        await nursery.start(proxy.run)
        stream = await dial(proxy)
        assert await stream.receive_some() == b""
        await stream.aclose()
