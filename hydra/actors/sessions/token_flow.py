"""How one session's tokens come in time: steadily, or with pauses that its reader sees. Pure.

A pause is the time from the last token before an interruption to the first one after it; without an interruption, a gap
between two tokens that is long for this session and for people. It knows no cause and no token.
"""

import attrs

STALL_S = 1.0  # a gap between two tokens that people notice
STALL_FACTOR = 5.0  # and so many times the usual one: a slow model's tokens are no stalls
LEARNS = 0.1  # the weight of one more gap in what is usual


@attrs.define
class TokenFlow:
    interrupted: bool = attrs.field(default=False, init=False)
    _last_s: float = attrs.field(default=0.0, init=False)  # the last token, or the beginning
    _begun: bool = attrs.field(default=False, init=False)  # a token has come
    _usual_s: float = attrs.field(default=0.0, init=False)  # between two tokens; 0: not known yet

    def begin(self, now_s: float) -> None:
        self._last_s = now_s

    def interrupt(self, now_s: float) -> float:
        """Returns how long no token has come."""
        self.interrupted = True
        return now_s - self._last_s

    def token(self, now_s: float) -> float | None:
        """One token came. Returns how long the pause was that it ends, if it ends one."""
        gap_s, self._last_s = now_s - self._last_s, now_s
        interrupted, self.interrupted = self.interrupted, False
        if interrupted:
            self._begun = True
            return gap_s
        if not self._begun:
            self._begun = True  # what comes before the first token is no gap
            return None
        usual_s = self._usual_s
        if not usual_s:
            self._usual_s = gap_s
            return None
        self._usual_s += LEARNS * (min(gap_s, STALL_FACTOR * usual_s) - usual_s)
        return gap_s if gap_s > STALL_S and gap_s > STALL_FACTOR * usual_s else None
