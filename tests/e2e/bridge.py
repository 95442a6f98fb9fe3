"""A program that runs on one machine and takes connections of another: `bridge FD PORT` accepts at a listening socket
that it inherited and carries every connection to PORT on its own loopback.
"""

import math
import socket
import sys

import trio

CHUNK_BYTES = 65_536


async def main(fd: int, port: int) -> None:
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(socket.socket(fileno=fd)))

    async def carry(near: trio.SocketStream) -> None:
        try:
            far = await trio.open_tcp_stream("127.0.0.1", port, happy_eyeballs_delay=math.inf)
        except OSError:
            await near.aclose()  # nobody listens: the client sees its connection close
            return
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(pump, near, far, nursery.cancel_scope)
            nursery.start_soon(pump, far, near, nursery.cancel_scope)

    await trio.serve_listeners(carry, [listener])


async def pump(source: trio.SocketStream, target: trio.SocketStream, both: trio.CancelScope) -> None:
    """One direction. When it ends, the connection ends."""
    try:
        while chunk := await source.receive_some(CHUNK_BYTES):
            await target.send_all(chunk)
    except trio.BrokenResourceError:
        pass  # a connection that breaks on one side is closed on the other
    both.cancel()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), int(sys.argv[2]))
