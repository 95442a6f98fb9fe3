"""A line to a coordinator that is not there."""

import trio


class SilentSpoke:
    """Nobody answers."""

    peer = "somebody"

    def send_nowait(self, frames):
        pass

    async def receive(self):
        await trio.sleep_forever()

    def close(self):
        pass
