"""What one rendering of a chat template may cost: work, room and nesting. It knows values, and no template.

Work is counted in turns (one turn of a loop, one comparison, a few hundred characters looked at), room in characters
and list items made. Values can share parts, so that a list of sixty nested pairs prints as 2**60 items: whatever
walks through a value pays for the walk before it starts.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import attrs
from jinja2 import TemplateError
from jinja2.runtime import Undefined

TURNS_MAX = 1_000_000
TURN_CHARACTERS = 256  # what is read or compared in one turn
ROOM_MAX, ROOM_PER_CHARACTER = 16 << 20, 16  # the second for every character of the request
OUTPUT_MAX, OUTPUT_PER_CHARACTER = 1 << 20, 4
DEPTH_MAX = 128
NUMBER_MAX = 1 << 63
RENDER_S_MAX = 1.0  # of one thread's CPU: the backstop behind the counters
LOOK_EVERY_TURNS = 2_000


class BudgetSpent(TemplateError):
    """The template asked for more work or room than any conversation needs."""


@attrs.frozen
class Weight:
    """A value's size when it is walked through: parts, characters, levels of nesting."""

    nodes: int
    characters: int
    depth: int


@attrs.define
class Budget:
    """Counts down. Raises BudgetSpent."""

    input_characters: int = 0
    turns: int = attrs.field(default=TURNS_MAX, init=False)
    room: int = attrs.field(init=False)
    output: int = attrs.field(init=False)
    _began_s: float = attrs.field(factory=time.thread_time, init=False)
    _look_at: int = attrs.field(default=TURNS_MAX - LOOK_EVERY_TURNS, init=False)

    def __attrs_post_init__(self) -> None:
        self.room = ROOM_MAX + ROOM_PER_CHARACTER * self.input_characters
        self.output = OUTPUT_MAX + OUTPUT_PER_CHARACTER * self.input_characters

    def work(self, turns: int = 1) -> None:
        self.turns -= turns
        if self.turns < self._look_at:
            self._look()

    def _look(self) -> None:
        self._look_at = self.turns - LOOK_EVERY_TURNS
        if self.turns < 0:
            raise BudgetSpent(f"it does more than {TURNS_MAX} turns of work")
        if time.thread_time() - self._began_s > RENDER_S_MAX:
            raise BudgetSpent(f"it works for more than {RENDER_S_MAX:.0f} s")

    def build(self, size: int) -> None:
        self.room -= size
        if self.room < 0:
            raise BudgetSpent(f"it builds more than {ROOM_MAX} characters beyond what was said")

    def emit(self, size: int) -> None:
        self.output -= size
        if self.output < 0:
            raise BudgetSpent(f"it writes more than {OUTPUT_MAX} characters beyond what was said")

    def weigh(self, *values: Any) -> Weight:
        """Pays for one walk through `values` and everything in them, level by level."""
        level: list[Any] = list(values)
        nodes, characters = 0, 0
        for depth in range(DEPTH_MAX):
            inner: list[Any] = []
            for value in level:
                if isinstance(value, str):
                    characters += len(value)
                    self.work(1 + len(value) // TURN_CHARACTERS)
                elif isinstance(value, list | tuple):
                    self.work(1 + len(value))
                    inner.extend(value)
                elif isinstance(value, Mapping):
                    self.work(1 + 2 * len(value))
                    inner.extend(value.keys())
                    inner.extend(value.values())
                else:
                    self.work(1 + (len(value) // 4 if isinstance(value, range) else 0))
            nodes += len(level)
            if not inner:
                return Weight(nodes, characters, depth)
            level = inner
        raise BudgetSpent(f"it nests values more than {DEPTH_MAX} deep")

    def text(self, value: Any) -> str:
        """`str(value)`, paid for before it is made. Raises BudgetSpent, TemplateError for what has no text."""
        if isinstance(value, str):
            self.build(len(value))
            self.work(1 + len(value) // TURN_CHARACTERS)
            return value
        if value is None or isinstance(value, int | float | Undefined):
            return str(self.number(value))
        if isinstance(value, list | tuple | Mapping):
            weight = self.weigh(value)
            self.build(weight.characters + 8 * weight.nodes)
            written = str(value)
            self.build(len(written))
            return written
        raise TemplateError(f"a {type(value).__name__} has no text")

    def number(self, value: Any) -> Any:
        if isinstance(value, int) and abs(value) > NUMBER_MAX:
            raise BudgetSpent("it computes with numbers that are too large")
        return value

    def received(self, result: Any) -> Any:
        """Pays for what an operation has made; what is made lazily is paid for as it comes."""
        if isinstance(result, str | list | tuple | Mapping):
            self.build(len(result))
        elif isinstance(result, Iterator):
            return self.counted(result)
        return self.number(result)

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """`items`, each for a turn."""
        for item in items:
            self.work()
            yield item


_CURRENT: ContextVar[Budget] = ContextVar("the budget of the rendering under way")


def current() -> Budget:
    """The budget of the rendering under way. A LookupError is a bug: nothing renders or compiles without one."""
    return _CURRENT.get()


@contextmanager
def spending(budget: Budget) -> Iterator[Budget]:
    """What is rendered or compiled inside pays from `budget`."""
    token = _CURRENT.set(budget)
    try:
        yield budget
    finally:
        _CURRENT.reset(token)


def size_of(value: Any) -> int:
    """Items or characters, without looking inside."""
    return len(value) if isinstance(value, Sized) else 1


def characters_of(value: Any) -> int:
    """Characters in all strings of a JSON value. The value is a tree, as a parser made it."""
    total, left = 0, [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, Mapping):
            left.extend(item.keys())
            left.extend(item.values())
        elif isinstance(item, list | tuple):
            left.extend(item)
    return total
