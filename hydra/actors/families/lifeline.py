"""The thread of life between a parent and its child: two pipes and one byte at a time.

Child to parent: "." every second from the event loop (so a stopped or stuck loop falls silent), "+" once it has found
its place (it listens, or the coordinator has let it in), "!" once it is ready.
Parent to child: nothing; end of file means that the parent is gone, and the child ends itself within its drain time.
"""

import os
import threading
from collections.abc import Callable

import attrs
import trio

FAMILY_ENV = "HYDRA_FAMILY"  # in a child's environment: the secret that it shares with its parent, see Hello
BEAT = b"."
UP = b"+"
READY = b"!"
BEAT_EVERY_S = 1.0


@attrs.define(eq=False)
class Lifeline:
    """The child's end. `on_orphaned` is called once, in the loop, when the parent is gone."""

    read_fd: int
    write_fd: int
    drain_timeout: float
    on_orphaned: Callable[[], None]
    orphaned: bool = attrs.field(default=False, init=False)

    async def hold(self) -> None:
        """Beats and listens until cancelled."""
        os.set_blocking(self.read_fd, False)
        os.set_blocking(self.write_fd, False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            await self._listen()

    def say_up(self) -> None:
        self._write(UP)

    def say_ready(self) -> None:
        self._write(READY)

    async def _beat(self) -> None:
        while True:
            self._write(BEAT)
            await trio.sleep(BEAT_EVERY_S)

    def _write(self, word: bytes) -> None:
        try:
            os.write(self.write_fd, word)
        except (BlockingIOError, BrokenPipeError):
            return  # a parent that does not read is stuck or gone; `_listen` finds out which

    async def _listen(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self.read_fd)
            try:
                word = os.read(self.read_fd, 64)
            except BlockingIOError:
                continue
            if not word:
                break
        self._set_alarm()
        self.orphaned = True
        self.on_orphaned()
        await trio.sleep_forever()

    def _set_alarm(self) -> None:
        """Even a loop that is stuck ends: a plain thread takes the process down a little after the drain time."""
        alarm = threading.Timer(self.drain_timeout, os._exit, args=(1,))
        alarm.daemon = True
        alarm.start()
