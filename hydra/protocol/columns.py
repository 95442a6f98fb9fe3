"""Columns: what travels once per row, per token or in a list of its own, one line each.

A class whose fields have a line each is a table (see `batch`). A line says what a column is called, what its numbers
are, how many there are of them and where they end; the wire form, its counts and its checks are read from these lines.
So a column that is added is a line more, and no slice arithmetic anywhere.

How many numbers a column has is said in one of three ways: it lies beside another (`per="row"`: as many as that one
has), it has some for each row (`counts="length"`: the column `length` says how many), or it is a list of its own. What
is beside no other is counted in the header, in the order of the class. Knows no frames, and nobody who fills or reads
a column.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from operator import attrgetter, itemgetter
from typing import Any, Final, Literal, TypeAlias

import attrs
import numpy as np

from hydra.protocol.blob import Buffer

Numbers: TypeAlias = np.ndarray[Any, Any]
Bound: TypeAlias = Literal["vocabulary", "pool's blocks", "pool's positions"]  # their sizes are not known here

INT32 = np.dtype("<i4")
FLOAT32 = np.dtype("<f4")
ITEM_BYTES: Final = 4  # of every column
SMALL_COLUMNS = 256  # so many numbers are checked faster as a list
LAYOUTS_KEPT = 64  # of a table: one step is much like the one before
LINE = "column"  # the metadata of a field that is a column: its line, without the name

_NOTHING = np.zeros(0, INT32)


def column_of(data: Any, dtype: np.dtype[Any]) -> Any:
    """Bytes as a read-only column, without a copy."""
    if type(data) is not bytes or len(data) % dtype.itemsize:
        raise TypeError(f"{type(data).__name__} is no column of {dtype}")
    return np.frombuffer(data, dtype)


def lowest(column: Numbers) -> int:
    """0 for an empty one."""
    return min(column.tolist(), default=0) if len(column) <= SMALL_COLUMNS else int(column.min())


def highest(column: Numbers) -> int:
    """0 for an empty one."""
    return max(column.tolist(), default=0) if len(column) <= SMALL_COLUMNS else int(column.max())


@attrs.frozen(kw_only=True)
class Column:
    """One line of a table. `low` and `high` hold for every number on the wire; None: the type's own end."""

    name: str
    dtype: np.dtype[Any] = INT32
    per: str = ""  # the column beside which it lies
    wide: bool = False  # a row of numbers beside each number of that one, all equally long
    counts: str = ""  # the column that says how many values each row has
    least: int = 0  # of them
    items_max: int | None = None
    low: int | None = 0
    high: int | None = None
    below: Bound | None = None  # numbers that name something: how many of those there are is not known here
    no_name: int = 0  # -1 where that stands for none; else the reader has looked for negative numbers


@attrs.frozen
class Layout:
    """Where each column lies among the numbers of one message."""

    n_values: int
    take: Callable[[Numbers], tuple[Numbers, ...]]  # all columns at once, in the order of the table
    sums: tuple[tuple[int, slice, int, int, str], ...]  # of each ragged one: its counts and where, sum, least, name
    forms: tuple[tuple[int, np.dtype[Any], tuple[int, ...]], ...]  # of each that is no plain column of int32


class ColumnTable:
    """The columns of one class, in its order, which is that of the wire.

    What can be known before a message comes is worked out here once; the rest takes part in every step of every stage.
    """

    def __init__(self, kind: type) -> None:
        lines = [(field.name, field.metadata[LINE]) for field in attrs.fields(kind) if LINE in field.metadata]
        self.columns = tuple(Column(name=name, **line) for name, line in lines)
        self.names = tuple(name for name, _ in lines)
        at = {name: index for index, name in enumerate(self.names)}
        for index, line in enumerate(self.columns):
            later = {line.per, line.counts} - {"", *self.names[:index]}
            assert not later, f"{kind.__name__}.{line.name} lies beside or is counted by what comes later: {later}"
        self._counted = tuple(line for line in self.columns if not line.per)
        counted = [line.name for line in self._counted]
        self.n_counts = len(counted)
        self._count_of = tuple(counted.index(line.per or line.name) for line in self.columns)
        self._all, self._all_counted = _picker(attrgetter, self.names), _picker(attrgetter, counted)
        self._dtypes = [line.dtype for line in self.columns]
        self._ragged = tuple((at[line.name], at[line.counts], line.least) for line in self.columns if line.counts)
        self._bounded = tuple((line.name, line.below, line.no_name) for line in self.columns if line.below)
        self._plain = all(line.dtype == INT32 and not line.wide for line in self.columns)
        self._natural = self._plain and all(line.low == 0 for line in self.columns)
        floored = () if self._natural else tuple((at[line.name], line.low, None) for line in self.columns)
        topped = tuple((at[line.name], None, line.high) for line in self.columns)
        self._ranges = tuple(limits for limits in (*floored, *topped) if limits[1:] != (None, None))
        self._checked = bool(self._natural or self._ragged or self._ranges)
        self.layout = lru_cache(LAYOUTS_KEPT)(self._layout)

    def counts(self, of: object) -> tuple[int, ...]:
        """How many numbers are in what the header counts."""
        return tuple(map(len, self._all_counted(of)))

    def join(self, of: object) -> bytes:
        """All columns end to end. A column of another dtype is our own mistake: TypeError."""
        parts = self._all(of)
        if [part.dtype for part in parts] != self._dtypes:
            given = [f"{name} of {part.dtype}" for name, part in zip(self.names, parts, strict=True)]
            raise TypeError(f"columns of another dtype among {', '.join(given)}")
        try:
            return b"".join(parts)
        except TypeError:  # one that does not lie in one piece
            return b"".join([part.tobytes() for part in parts])

    def _layout(self, counts: tuple[int, ...], width: int = 0) -> Layout:
        """`layout`, without its memory of what came last. Raises ValueError for more than there ever is."""
        for count, line in zip(counts, self._counted, strict=True):
            if line.items_max is not None and count > line.items_max:
                raise ValueError(f"{count} in {line.name}, where there are at most {line.items_max}")
        lengths = [counts[at] for at in self._count_of]
        lines = tuple(zip(range(len(lengths)), lengths, self.columns, strict=True))
        ends = tuple(accumulate(length * width if line.wide else length for _, length, line in lines))
        slices = tuple(map(slice, (0, *ends), ends))
        sums = tuple((by, slices[by], lengths[at], least, self.names[at]) for at, by, least in self._ragged)
        shapes = ((at, line, (length, width) if line.wide else (length,)) for at, length, line in lines)
        forms = tuple((at, line.dtype, shape) for at, line, shape in shapes if line.wide or line.dtype != INT32)
        return Layout(ends[-1], _picker(itemgetter, slices), sums, forms)

    def cut(self, buffer: Buffer, at: int, layout: Layout) -> Sequence[Numbers]:
        """The columns in their order, from byte `at` on; they look into the buffer. Raises ValueError for a lie."""
        values = np.frombuffer(buffer, INT32, layout.n_values, at) if layout.n_values else _NOTHING
        if not values.flags.aligned:
            values = values.copy()
        columns: Sequence[Numbers] = layout.take(values)
        if layout.forms:
            columns = _formed(columns, layout)
        if self._checked:
            self._check(values, columns, layout)
        return columns

    def _check(self, values: Numbers, columns: Sequence[Numbers], layout: Layout) -> None:
        """What the lines say of the numbers. One list of all of them, where they are few, is looked at fastest."""
        numbers = values.tolist() if layout.n_values <= SMALL_COLUMNS else None
        if self._natural and layout.n_values and (values.min() if numbers is None else min(numbers)) < 0:
            raise ValueError("a negative number in a column")
        for at, part, n_values, least, name in layout.sums:
            counts = columns[at].tolist() if numbers is None else numbers[part]
            if sum(counts) != n_values or (least and counts and min(counts) < least):
                raise ValueError(f"{name} and the counts of their rows disagree")
        for at, low, high in self._ranges:
            column = columns[at]
            if (high is not None and highest(column) > high) or (low is not None and lowest(column) < low):
                raise ValueError(f"a number in {self.names[at]} below {low} or above {high}")

    def apart(self, of: object) -> list[bytes]:
        """Each column's bytes by themselves, for a lane that counts them in its own way."""
        parts = zip(self._all(of), self.columns, strict=True)
        return [np.ascontiguousarray(part, line.dtype).tobytes() for part, line in parts]

    def gather(self, parts: Sequence[bytes], width: int = 0) -> Sequence[Numbers]:
        """The other half of `apart`. Raises ValueError and TypeError for parts that do not fit together."""
        columns = [column_of(part, dtype) for part, dtype in zip(parts, self._dtypes, strict=True)]
        lengths = dict(zip(self.names, map(len, columns), strict=True))
        lines = zip(columns, self.columns, strict=True)
        return [part.reshape(lengths[line.per], width) if line.wide else part for part, line in lines]

    def beyond(self, of: object, bounds: Mapping[Bound, int]) -> str:
        """The first column with a number that names nothing, and what it should name; empty: there is none.

        Only columns whose bound is among `bounds` are looked at.
        """
        for name, below, low in self._bounded:
            if below in bounds:
                numbers = getattr(of, name)
                numbers = numbers if numbers.ndim == 1 else numbers.ravel()
                if highest(numbers) >= bounds[below] or (low < 0 and lowest(numbers) < low):
                    return f"{name} beyond the {below}"
        return ""


def _formed(columns: Sequence[Numbers], layout: Layout) -> list[Numbers]:
    formed = list(columns)
    for at, dtype, shape in layout.forms:
        formed[at] = formed[at].view(dtype).reshape(shape)
    return formed


def _picker(kind: Callable[..., Any], keys: Sequence[Any]) -> Callable[[Any], tuple[Any, ...]]:
    """`attrgetter` or `itemgetter`, which answer with a tuple only where there are two keys."""
    picks: Callable[[Any], Any] = kind(*keys)
    return picks if len(keys) > 1 else lambda of: (picks(of),)
