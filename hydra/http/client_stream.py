"""A client's connection: its sends end by a deadline, and its end does not tear away what was sent.

hypercorn's Trio worker shields its sends, so a client that never reads would hold its handler and the shutdown for as
long as it stays connected. And it closes a connection although the client is still sending, to which the kernel answers
with a reset, and the client never sees the answer. It knows sockets, and no HTTP.
"""

import trio

LINGER_S = 3.0
CHUNK_BYTES = 1 << 16
CLIENT_STREAM = "hydra.client_stream"  # where a request's scope["state"] has it


class ClientStream(trio.abc.HalfCloseableStream):
    """A socket stream. What its client sends after our last word is swallowed for a while, before it is closed."""

    def __init__(self, stream: trio.SocketStream, write_deadline_s: float, linger_s: float = LINGER_S) -> None:
        self._stream = stream
        self._write_deadline_s = write_deadline_s
        self._linger_s = linger_s
        self._lingers = False
        self._swallows = False
        self._reading = False
        self._ended = trio.Event()  # the client sends no more

    @property
    def socket(self) -> trio.socket.SocketType:
        return self._stream.socket

    def linger(self) -> None:
        """The client is still sending: wait for its end, within bounds, when this is closed."""
        self._lingers = True

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with trio.move_on_after(self._write_deadline_s) as scope:
            scope.shield = True
            await self._stream.send_all(data)
        if scope.cancelled_caught:
            await trio.aclose_forcefully(self._stream)
            raise trio.BrokenResourceError(f"the client read nothing for {self._write_deadline_s:.0f} s")

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        while True:
            data = await self._receive(max_bytes)
            if not data or not self._swallows:
                return data

    async def _receive(self, max_bytes: int | None) -> bytes | bytearray:
        self._reading = True
        try:
            data = await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._ended.set()
            raise
        finally:
            self._reading = False
        if not data:
            self._ended.set()
        return data

    async def aclose(self) -> None:
        """Whoever is in `receive_some` meanwhile swallows; when nobody is, the server gave up on what it has read."""
        try:
            if self._lingers or not self._reading:
                with trio.move_on_after(self._linger_s):
                    await self._swallow()
        finally:
            await self._stream.aclose()

    async def _swallow(self) -> None:
        self._swallows = True
        try:
            if not self._reading and not self._ended.is_set():
                await self.receive_some(CHUNK_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # it has gone: nothing is left to wait for
        await self._ended.wait()
