"""The wire form of a list of tensor ranges: what they have in common is said once.

A quantised mixture of experts has tens of thousands, four for each matrix, and one message carries those of a slice. So
files, encodings and the kinds of places are tables, and a name begins like the one before it. Promises: what is
unfolded is what was folded, rows of plain fields that are checked one by one after it; names cannot grow without bound
by sharing. Knows the order of the fields, and not what they mean.
"""

from collections.abc import Sequence
from typing import Any

NAME_CHARS_MAX = 1000
FOLDED_FIELDS = 11

RangeRow = list[Any]


def fold(rows: Sequence[RangeRow]) -> list[Any]:
    """Rows of a range's fields in their order, the place a row too, or None."""
    files: dict[str, int] = {}
    encodings: dict[str, int] = {}
    kinds: dict[tuple[Any, ...], int] = {}
    folded: list[RangeRow] = []
    last = ""
    for name, file, offset, length, encoding, shape, place in rows:
        shared = _shared(last, name)
        role, layer, first_row, expert, *kind = place if place is not None else (None,) * 4
        kind_at = None if place is None else kinds.setdefault((role, *kind), len(kinds))
        where = (kind_at, layer, first_row, expert)
        file_at = files.setdefault(file, len(files))
        encoding_at = encodings.setdefault(encoding, len(encodings))
        folded.append([shared, name[shared:], file_at, offset, length, encoding_at, shape, *where])
        last = name
    return [list(files), list(encodings), [list(kind) for kind in kinds], folded]


def unfold(value: Any) -> list[RangeRow]:
    """The same rows again. Raises TypeError and ValueError for what `fold` does not write."""
    files, encodings, kinds, folded = _lists(value, 4)
    rows: list[RangeRow] = []
    last = ""
    for row in _lists(folded):
        shared, tail, file, offset, length, encoding, shape, kind, layer, first_row, expert = _lists(row, FOLDED_FIELDS)
        if type(tail) is not str or type(shared) is not int or not 0 <= shared <= min(len(last), NAME_CHARS_MAX):
            raise TypeError("a name shares its beginning with the one before it")
        last = last[:shared] + tail
        place = None
        if kind is not None:
            role, *rest = _lists(_at(kinds, kind))
            place = [role, layer, first_row, expert, *rest]
        rows.append([last, _at(files, file), offset, length, _at(encodings, encoding), shape, place])
    return rows


def _shared(one: str, other: str) -> int:
    """How many characters two names begin with in common."""
    most = min(len(one), len(other), NAME_CHARS_MAX)
    if one[:most] == other[:most]:
        return most
    low, high = 0, most  # the first of these are equal, and the first `high` are not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle)
    return low


def _lists(value: Any, length: int | None = None) -> list[Any]:
    if type(value) is not list or (length is not None and len(value) != length):
        raise TypeError(f"expected a list{'' if length is None else f' of {length}'}")
    return value


def _at(table: Any, index: Any) -> Any:
    if type(table) is not list or type(index) is not int or not 0 <= index < len(table):
        raise ValueError("a place in a table that has none there")
    return table[index]
