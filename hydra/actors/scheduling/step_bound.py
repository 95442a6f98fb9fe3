"""How many tokens a step of one route may have, once a step has found no memory on some device.

Nothing is bounded until then. A step that fails halves the bound; after a while without a failure it doubles again, and
each failure after a doubling makes that while twice as long: a shortage that passes costs little time, one that stays
costs few failures. Knows no rows, and nothing of the devices.
"""

import attrs

GROW_AFTER_S = 10.0
GROW_AFTER_MAX_S = 3600.0


@attrs.define
class StepBound:
    """`at(now)` is the bound; None: there is none."""

    _tokens: int | None = attrs.field(default=None, init=False)
    _failed_tokens: int = attrs.field(default=0, init=False)  # the largest step that failed since there is a bound
    _since_s: float = attrs.field(default=0.0, init=False)  # of the last change
    _grow_after_s: float = attrs.field(default=GROW_AFTER_S, init=False)
    _has_grown: bool = attrs.field(default=False, init=False)  # since the last failure

    def at(self, now_s: float) -> int | None:
        while self._tokens is not None and now_s - self._since_s >= self._grow_after_s:
            self._tokens = self._tokens * 2 if self._tokens < self._failed_tokens else None
            self._since_s += self._grow_after_s
            self._has_grown = True
        return self._tokens

    def check(self) -> None:
        """A bound is never zero, and never beyond what failed. Raises AssertionError."""
        assert self._tokens is None or 0 < self._tokens <= max(1, self._failed_tokens), f"a bound of {self._tokens}"
        assert GROW_AFTER_S <= self._grow_after_s <= GROW_AFTER_MAX_S, f"it grows after {self._grow_after_s} s"

    def fail(self, tokens: int, now_s: float) -> None:
        """A step of so many tokens found no memory. Steps that were larger and under way already may follow it."""
        if self._has_grown:
            self._grow_after_s = min(GROW_AFTER_MAX_S, 2 * self._grow_after_s)
        half = max(1, tokens // 2)
        self._tokens = half if self._tokens is None else min(self._tokens, half)
        self._failed_tokens = max(self._failed_tokens, tokens)
        self._since_s, self._has_grown = now_s, False
