"""Looks at the machines of a simulated cluster while they work: does every one of them still agree with itself?

After each event the machine that handled it checks itself; every PERIOD-th event of a machine so do all its parts,
which may be large. It finds parts by what they are, not by name: what has a `check` and lies in a field of something
that is made of fields. It changes nothing, and what it finds is a fault of the story.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

PERIOD = 32
DEEPEST = 4


def parts_of(thing: Any, depth: int = 0) -> Iterator[Any]:
    """The thing itself and what lies in it, as far as it can check itself."""
    if hasattr(type(thing), "check"):
        yield thing
    if depth < DEEPEST and attrs.has(type(thing)) and type(thing).__module__.startswith("hydra."):
        for field in attrs.fields(type(thing)):
            value = getattr(thing, field.name)
            for one in value.values() if isinstance(value, Mapping) else (value,):
                yield from parts_of(one, depth + 1)


@attrs.define(eq=False)
class Inspector:
    """Of one host. `beside` are parts that no machine of it holds."""

    faults: list[BaseException]
    beside: tuple[Any, ...] = ()
    _events: dict[int, int] = attrs.field(factory=dict, init=False)  # by machine

    def look(self, machine: Any) -> None:
        """After an event of this machine. Raises AssertionError, which is noted before anybody can contain it."""
        number = self._events[id(machine)] = self._events.get(id(machine), 0) + 1
        try:
            if number % PERIOD == 0:
                self.look_at_all(machine)
            elif hasattr(type(machine), "check"):
                machine.check()
        except AssertionError as fault:
            self.faults.append(fault)
            raise

    def look_at_all(self, machine: Any) -> None:
        """The machine, all its parts, and what is beside it."""
        for thing in (machine, *self.beside):
            for part in parts_of(thing):
                part.check()
