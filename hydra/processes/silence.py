"""What a worker's parent says while its coordinator is silent: since when, and why as far as a connection can tell.

`Silence` decides when to speak; `tell_of_silence` looks and speaks. Nothing here changes what anybody does.
"""

import errno
import socket
from collections.abc import Callable

import attrs
import trio

from hydra.processes.host_port import HostPort

QUIET_S = 3.0  # a coordinator that is just starting is not worth a word
EVERY_S = 5.0
MOST_S = 60.0  # between two lines, once it has lasted
SILENCE_POLL_S = 0.5
PROBE_CONNECT_S = 2.0
REASONS = {
    errno.ECONNREFUSED: "connection refused",
    errno.EHOSTUNREACH: "no route to host",
    errno.ENETUNREACH: "network is unreachable",
    errno.ETIMEDOUT: "connection timed out",
}


@attrs.define
class Silence:
    """Speaks after `QUIET_S`, then every `EVERY_S`, then ever more rarely; and once when it is over."""

    _next_s: float = attrs.field(default=QUIET_S, init=False)
    _longest_s: float = attrs.field(default=0.0, init=False)

    def due(self, silent_s: float) -> bool:
        if silent_s < self._next_s:
            return False
        self._longest_s = silent_s
        self._next_s = silent_s + min(MOST_S, max(EVERY_S, silent_s / 4))
        return True

    def over(self) -> float | None:
        """How long it had lasted when it was spoken of last; None when nobody spoke."""
        longest_s, self._longest_s, self._next_s = self._longest_s, 0.0, QUIET_S
        return longest_s or None


async def tell_of_silence(silent_s: Callable[[], float], at: HostPort, say: Callable[[str], None]) -> None:
    """For as long as it is let. `silent_s`: for how long the coordinator has not answered; 0: it does."""
    silence = Silence()
    while True:
        await trio.sleep(SILENCE_POLL_S)
        now_silent_s = silent_s()
        if now_silent_s == 0.0:
            if silence.over() is not None:
                say(f"reached {at}")
        elif silence.due(now_silent_s):
            reason = await reason_of(at)
            say(f"still trying {at} ({now_silent_s:.0f} s): {reason}")


async def reason_of(at: HostPort) -> str:
    """What a plain connection meets there."""
    try:
        with trio.fail_after(PROBE_CONNECT_S):
            stream = await trio.open_tcp_stream(at.host, at.port)
    except trio.TooSlowError:
        return f"no answer to a connection within {PROBE_CONNECT_S:.0f} s (a firewall, or a machine that is off?)"
    except OSError as error:
        return _reason(error)
    await stream.aclose()
    return "something listens there, but does not answer as a coordinator (is it the port of [zmq] router_addr?)"


def _reason(why: OSError) -> str:
    """Trio wraps the failures of all addresses of a name."""
    cause = why.__cause__
    if isinstance(cause, ExceptionGroup):
        cause = next((one for one in cause.exceptions if isinstance(one, OSError)), None)
    inner = cause if isinstance(cause, OSError) else why
    if isinstance(inner, socket.gaierror):
        return f"the name cannot be resolved ({inner.strerror})"
    return REASONS.get(inner.errno or 0, inner.strerror or str(inner))
