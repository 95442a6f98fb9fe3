"""Filters and tests that a chat template may use: a closed list, each paid for before it works.

Most are Jinja's own behind a meter. Those whose results or running time depend on a number they are given are our own.
It knows budgets and values, and no template.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any

from jinja2 import TemplateError, pass_environment
from jinja2.filters import FILTERS, do_indent, do_round
from jinja2.sandbox import SandboxedEnvironment
from jinja2.tests import TESTS

from hydra.text.chat_template.budget import BudgetSpent, current, size_of
from hydra.text.chat_template.marks import ALL_MARKS

CALL_TURNS = 5  # what a call, a filter or a test of its own counts for
INDENT_MAX, SEPARATOR_MAX, DIGITS_MAX = 64, 16, 32

# What these look at is the outside of a value: an item, a length, a kind.
SHALLOW = {
    "abs", "count", "d", "default", "first", "items", "last", "length", "list", "map", "reject", "rejectattr",
    "reverse", "safe", "select", "selectattr",
}  # fmt: skip
GLANCES = {"abs", "count", "d", "default", "first", "last", "length", "safe"}  # of SHALLOW, at one item at most
# These read their values to the bottom: as text, or to compare them.
DEEP = {
    "capitalize", "dictsort", "e", "escape", "float", "groupby", "int", "lower", "max", "min", "sort", "title",
    "trim", "unique", "upper", "urlencode", "wordcount",
}  # fmt: skip
PIECES = {"title", "wordcount"}  # of DEEP, those that cut a text into words
COMPARING_TESTS = {
    "!=", "<", "<=", "==", ">", ">=", "divisibleby", "eq", "equalto", "even", "ge", "greaterthan", "gt", "in", "le",
    "lessthan", "lower", "lt", "ne", "odd", "upper",
}  # fmt: skip


def metered_filters() -> dict[str, Callable[..., Any]]:
    """Every filter by name."""
    own: dict[str, Callable[..., Any]] = {
        "tojson": to_json, "replace": replaced, "join": joined, "indent": indented, "round": rounded,
        "string": text, "sum": summed,
    }  # fmt: skip
    jinjas: dict[str, Any] = {name: FILTERS[name] for name in SHALLOW | DEEP}
    jinjas = {
        name: _metered(function, deep=name in DEEP, walks=name not in GLANCES, pieces=name in PIECES)
        for name, function in jinjas.items()
    }
    return jinjas | {name: _metered(function, deep=False) for name, function in own.items()}


def metered_tests() -> dict[str, Callable[..., Any]]:
    """Every test (`x is ...`) by name."""
    jinjas: dict[str, Any] = dict(TESTS)
    return {name: _metered(function, deep=name in COMPARING_TESTS) for name, function in jinjas.items()}


def _metered(work: Callable[..., Any], *, deep: bool, walks: bool = True, pieces: bool = False) -> Callable[..., Any]:
    first = 1 if hasattr(work, "jinja_pass_arg") else 0  # the environment, which is nobody's value

    @wraps(work)
    def metered(*args: Any, **kwargs: Any) -> Any:
        budget = current()
        budget.work(CALL_TURNS)
        if deep:
            args = (*args[:first], *[list(arg) if isinstance(arg, Iterator) else arg for arg in args[first:]])
            weight = budget.weigh(*args[first:], *kwargs.values())
            if pieces:
                budget.build(8 * weight.characters)
        elif walks and len(args) > first:
            budget.work(size_of(args[first]) // (256 if isinstance(args[first], str) else 4))
        return budget.received(work(*args, **kwargs))

    return metered


def text(value: Any) -> str:
    return current().text(value)


def summed(items: Any, attribute: str | int | None = None, start: Any = 0) -> Any:
    """Of numbers only: a sum of lists copies what it has at every step."""
    if attribute is not None or not isinstance(start, int | float):
        raise TemplateError("the filter sum adds plain numbers")
    total = start
    for item in current().counted(items):
        if not isinstance(item, int | float):
            raise TemplateError("the filter sum adds plain numbers")
        total += item
    return current().number(total)


def replaced(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    whole, old, new = text(value), text(old), text(new)
    pay_replace(whole, old, new)
    return whole.replace(old, new, -1 if count is None else count)


def pay_replace(whole: str, old: str, new: str) -> None:
    budget = current()
    budget.work(1 + len(whole) // 256)
    budget.build(whole.count(old) * len(new) + len(whole))


def pay_pieces(whole: str, separator: Any) -> None:
    """A string of its own for each piece that a split makes."""
    pieces = whole.count(separator) if isinstance(separator, str) and separator else len(whole) // 2
    current().work(1 + len(whole) // 256)
    current().build(len(whole) + 16 * (pieces + 1))


@pass_environment
def joined(environment: SandboxedEnvironment, items: Any, glue: Any = "", attribute: str | int | None = None) -> str:
    budget, between = current(), text(glue)
    texts: list[str] = []
    for item in budget.counted(items):
        texts.append(budget.text(item if attribute is None else environment.getitem(item, attribute)))
        budget.build(len(between))
    return between.join(texts)


def indented(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if size_of(width) > INDENT_MAX if isinstance(width, str) else not -1 <= width <= INDENT_MAX:
        raise BudgetSpent(f"it indents by more than {INDENT_MAX}")
    whole = text(value)
    pay_pieces(whole, None)
    current().build(len(whole.splitlines()) * (len(width) if isinstance(width, str) else max(0, width)))
    return do_indent(whole, width, first, blank)


def rounded(value: Any, precision: int = 0, method: str = "common") -> Any:
    if not isinstance(precision, int) or abs(precision) > DIGITS_MAX:
        raise BudgetSpent(f"it rounds to more than {DIGITS_MAX} digits")
    return do_round(current().number(value), precision, method)  # type: ignore[arg-type]


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without HTML escapes, as models have learnt it. The parameters are those of transformers."""
    pad = len(indent) if isinstance(indent, str) else max(0, indent or 0)
    wide = sum(len(text(separator)) for separator in separators or ())
    if pad > INDENT_MAX or wide > SEPARATOR_MAX:
        raise BudgetSpent(f"it indents by more than {INDENT_MAX}")
    value = listed(value)
    weight = current().weigh(value)
    current().build(weight.characters * (6 if ensure_ascii else 1) + weight.nodes * (8 + wide + pad * weight.depth))
    pair = (separators[0], separators[1]) if separators else None
    written = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=bool(sort_keys))
    if ensure_ascii:
        for mark in ALL_MARKS:  # which nobody wrote: they are not part of the text
            written = written.replace(json.dumps(mark)[1:-1], mark)
    return written


def listed(value: Any) -> Any:
    """An iterator as the list of what it gives, so that it can be weighed."""
    return list(value) if isinstance(value, Iterator) and not isinstance(value, Mapping) else value
