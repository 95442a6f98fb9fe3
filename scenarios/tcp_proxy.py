"""A line that can fall silent: a TCP port whose connections all lead to one target, for as long as nobody cuts it.

Cut, it behaves as a network that loses every packet: connections stay open, bytes stay where they are, new connections
are taken and lead nowhere yet. Healed, everything goes on where it was. Knows nothing of what it carries; holds at most
64 KiB per connection and direction, the rest waits in the sockets.
"""

import math

import attrs
import trio

from hydra.processes.held_port import HeldPort

CHUNK_BYTES = 65_536
DIAL_WITHIN_S = 5.0


@attrs.define(eq=False)
class TcpProxy:
    """Listens `at` a port that is held for it and dials `to_host`:`to_port` once per connection."""

    at: HeldPort
    to_host: str
    to_port: int
    _whole: trio.Event = attrs.field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self._whole.set()

    def cut(self) -> None:
        self._whole = trio.Event()

    def heal(self) -> None:
        self._whole.set()

    async def run(self, task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Raises OSError when the port is taken."""
        await trio.serve_tcp(self._carry, self.at.port, host=self.at.host, task_status=task_status)

    async def _carry(self, near: trio.SocketStream) -> None:
        async with near:
            await self._whole.wait()
            try:
                with trio.fail_after(DIAL_WITHIN_S):
                    far = await trio.open_tcp_stream(self.to_host, self.to_port, happy_eyeballs_delay=math.inf)
            except (OSError, trio.TooSlowError):
                return  # nobody is there: the other side sees its connection close, as without a proxy
            async with far, trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, near, far, nursery.cancel_scope)
                nursery.start_soon(self._pump, far, near, nursery.cancel_scope)

    async def _pump(self, source: trio.SocketStream, target: trio.SocketStream, both: trio.CancelScope) -> None:
        """One direction. When it ends, the connection ends."""
        try:
            while chunk := await source.receive_some(CHUNK_BYTES):
                await self._whole.wait()
                await target.send_all(chunk)
        except trio.BrokenResourceError:
            pass  # a connection that breaks on one side is closed on the other
        both.cancel()
