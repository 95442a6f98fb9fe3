"""A machine's states as a table: which event leads from which state to which.

Each machine with states has one, in its own file. The machine says every change of a state to its table, which refuses
one that is not listed: so no diagram has to be believed. SPEC.md shows the same rows, and a test compares the two.
It knows no machine, and no event that leaves the state as it is.
"""

from typing import TypeAlias

import attrs

from hydra.actors.core.machine import Event, Received, TimerFired

Cause: TypeAlias = type | str  # a message, a fact or an event by its class; a timer or a finding by its name
Change: TypeAlias = tuple[str, Cause, str]


def rows(before: str, cause: Cause, after: str) -> tuple[Change, ...]:
    """One row for each of the states named in `before`, which are separated by blanks."""
    return tuple((state, cause, after) for state in before.split())


@attrs.frozen
class Transitions:
    """The table of one machine. `first` is the state of something that has just been made."""

    of: str  # what has these states, as SPEC.md calls it
    first: str
    rows: tuple[Change, ...]
    _listed: frozenset[Change] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_listed", frozenset(self.rows))
        assert len(self._listed) == len(self.rows), f"a row of {self.of} is there twice"

    def step(self, before: str, cause: Cause, after: str) -> str:
        """The new state. Raises AssertionError when the table does not know of this change."""
        if before != after:
            assert (before, cause, after) in self._listed, f"a {self.of} went {before} --{cause_name(cause)}--> {after}"
        return after

    def states(self) -> tuple[str, ...]:
        """In the order in which the rows come to them."""
        return tuple(
            dict.fromkeys([self.first, *(state for before, _, after in self.rows for state in (before, after))])
        )

    def as_markdown(self) -> str:
        """The table as SPEC.md shows it: one line for each change, with all states that it may come from."""
        lines: dict[tuple[str, str], list[str]] = {}
        for before, cause, after in self.rows:
            lines.setdefault((cause_name(cause), after), []).append(before)
        shown = [f"| {', '.join(before)} | {cause} | {after} |" for (cause, after), before in lines.items()]
        return "\n".join([f"| {self.of} | event | becomes |", "|---|---|---|", *shown])


def cause_of(event: Event) -> Cause:
    """What a machine was told: a message by its class, an event by its own, a timer by the first part of its key."""
    if isinstance(event, Received):
        return type(event.message)
    if isinstance(event, TimerFired):
        return f"timer {event.key[0] if isinstance(event.key, tuple) else event.key}"
    return type(event)


def cause_name(cause: Cause) -> str:
    """A class by its name, as code."""
    return cause if isinstance(cause, str) else f"`{cause.__name__}`"
