"""What happened, line by line and as it happens: what was injected, what was seen, and the verdict."""

import sys
from collections.abc import Callable
from typing import Literal, TextIO

import attrs
import trio


@attrs.define(eq=False)
class Playbill:
    """Lines with the time since `begin`; virtual seconds in a simulation."""

    out: TextIO = attrs.field(factory=lambda: sys.stdout)
    lines: list[str] = attrs.field(factory=list, init=False)
    _began_s: float | None = attrs.field(default=None, init=False)
    _clock: Callable[[], float] = attrs.field(default=trio.current_time, init=False)

    def begin(self) -> None:
        """The cluster is up."""
        self._began_s = self._clock()

    def injected(self, what: str) -> None:
        self._say("injected", what)

    def seen(self, what: str) -> None:
        self._say("seen", what)

    def verdict(self, word: Literal["passed", "FAILED"], why: str) -> None:
        self._print(f"verdict: {word}: {why}")

    def headline(self, text: str) -> None:
        self._print(text)

    def _say(self, kind: str, what: str) -> None:
        at_s = self._clock() - self._began_s if self._began_s is not None else 0.0
        self._print(f"{at_s:8.2f} s  {kind:<9} {what}")

    def _print(self, line: str) -> None:
        self.lines.append(line)
        print(line, file=self.out, flush=True)
