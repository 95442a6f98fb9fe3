"""How often one child has died, and how long to wait before its next start.

The pause doubles with every death that follows a short life, up to a limit, and shrinks again by what the child has
lived well. It counts; whether a child is worth another try is for others to say.
"""

import random

import attrs

PAUSE_FIRST_S = 0.2
LIVED_WELL_S = 20.0  # up for so long makes good for one death
REMEMBERED_S = 300.0  # what "died 6 times in 2 minutes" looks back on
DEATHS_KEPT_MAX = 1000  # that are remembered one by one


@attrs.define
class DeathBook:
    """Of one child. `rng` spreads the starts of a crowd."""

    rng: random.Random
    pause_most_s: float
    total: int = attrs.field(default=0, init=False)
    _level: int = attrs.field(default=0, init=False)  # deaths that no good life has made up for
    _deaths_s: list[float] = attrs.field(factory=list, init=False)

    def note(self, now_s: float, lived_s: float) -> float:
        """One more death, of a child that was up for `lived_s`. Returns the pause before its next start."""
        self.total += 1
        self._deaths_s = [*(at_s for at_s in self._deaths_s if at_s > now_s - REMEMBERED_S), now_s][-DEATHS_KEPT_MAX:]
        self._level = max(0, self._level - int(lived_s / LIVED_WELL_S)) + 1
        ceiling_s = PAUSE_FIRST_S
        for _ in range(self._level - 1):
            ceiling_s = min(self.pause_most_s, 2 * ceiling_s)
            if ceiling_s == self.pause_most_s:
                break
        return self.rng.uniform(ceiling_s / 2, ceiling_s)

    def check(self) -> None:
        """Raises AssertionError when the counts cannot be."""
        assert 0 <= self._level <= self.total and len(self._deaths_s) <= self.total, "more deaths than were noted"
        assert self._deaths_s == sorted(self._deaths_s), "deaths out of their order"

    def recent(self) -> str:
        """ "6 times in 2 minutes": the last deaths in words."""
        if len(self._deaths_s) < 2:
            return "once"
        span_s = self._deaths_s[-1] - self._deaths_s[0]
        minutes = round(span_s / 60)
        span = f"{minutes} minutes" if minutes > 1 else "a minute" if span_s > 45 else f"{max(1, round(span_s))} s"
        return f"{len(self._deaths_s)} times in {span}"
