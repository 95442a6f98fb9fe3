"""The end of a server in two steps: no new work, and then the last call for what is still open."""

import attrs
import trio

LAST_WORDS_S = 2.0  # for error events to reach their readers, at the end of the drain


@attrs.frozen
class Shutdown:
    """`begun`: new generations are refused. `last_call`: open ones end now, with an error that says why."""

    begun: trio.Event = attrs.field(factory=trio.Event)
    last_call: trio.Event = attrs.field(factory=trio.Event)

    async def drain(self, drain_timeout_s: float) -> None:
        """After `begun`: gives open generations their time, then calls them in. To be cancelled when none is left."""
        last_words_s = min(LAST_WORDS_S, drain_timeout_s / 4)
        await trio.sleep(drain_timeout_s - last_words_s)
        self.last_call.set()
        await trio.sleep(last_words_s)
