"""A chat template, rendered inside bounds: it reaches no Python object, turns no endless loop, builds no huge text.

A template comes from a model directory and is not trusted. Jinja's sandbox keeps it away from objects; three budgets
per rendering keep it away from the machine: turns of loops and calls, characters built, and a closed list of filters
and string methods whose results are bounded by what they are given. It does not know tokens.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from hydra.protocol.refusal import refuse

TURNS_MAX = 1_000_000  # of all loops of one rendering
CALL_TURNS = 10  # what a call counts for
BUILT_MAX = 16 << 20  # characters and list items made by operators, calls and output of one rendering
NUMBER_MAX = 1 << 63
FILTERS = {
    "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
    "groupby", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject",
    "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "sum",
    "title", "tojson", "trim", "unique", "upper", "urlencode", "wordcount",
}  # fmt: skip
# Of strings, lists and mappings; all others can grow without bound, or do nothing useful.
METHODS = {
    "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "startswith", "endswith", "lower", "upper",
    "title", "capitalize", "find", "rfind", "index", "rindex", "count", "replace", "join", "isdigit",
    "isdecimal", "isnumeric", "isalpha", "isalnum", "isspace", "islower", "isupper", "removeprefix",
    "removesuffix", "partition", "rpartition", "items", "keys", "values", "get", "casefold", "swapcase",
}  # fmt: skip


class BudgetSpent(TemplateError):
    """The template asked for more work or room than any conversation needs."""


@attrs.define
class _Budget:
    turns: int = TURNS_MAX
    built: int = BUILT_MAX

    def turn(self, turns: int = 1) -> None:
        self.turns -= turns
        if self.turns < 0:
            raise BudgetSpent(f"it loops and calls more than {TURNS_MAX} times")

    def build(self, size: int) -> None:
        self.built -= size
        if self.built < 0:
            raise BudgetSpent(f"it builds more than {BUILT_MAX} characters")


class _Counting(NodeTransformer):
    """Puts a counter into every loop and every concatenation of a parsed template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - the visitor's names
        self.generic_visit(node)
        if node.recursive:
            raise BudgetSpent("recursive loops are not supported")
        node.iter = nodes.Filter(node.iter, "counted", [], [], None, None)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), "concatenated", [], [], None, None)


class _Environment(ImmutableSandboxedEnvironment):
    """One rendering's environment, with its budget."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, budget: _Budget) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], finalize=self._output
        )
        self.budget = budget
        self.globals = {name: self.globals[name] for name in ("range", "dict", "namespace", "cycler", "joiner")}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.filters = {name: made for name, made in self.filters.items() if name in FILTERS}
        self.filters |= {
            "tojson": _to_json,
            "counted": self._counted,
            "concatenated": self._concatenated,
            "replace": self._replaced,
            "join": self._joined,
            "indent": self._indented,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed = super()._parse(source, name, filename)
        counted: nodes.Template = _Counting().visit(parsed)
        return counted

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - jinja's names
        __self.budget.turn(CALL_TURNS)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str | list | tuple | Mapping):
            if name not in METHODS:
                raise SecurityError(f"the method {name!r} is not available to templates")
            __self._foresee(owner, name, args)
        if hasattr(__obj, "__wrapped__"):  # the sandbox's stand-in for str.format, whose widths have no bound
            raise SecurityError(f"{name} is not available to templates")
        made = super().call(__context, __obj, *args, **kwargs)
        __self.budget.build(_size(made))
        return made

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            raise SecurityError("formatting with % is not available to templates")
        if operator == "*":
            sizes = [max(1, _size(side)) if not isinstance(side, int) else max(0, int(side)) for side in (left, right)]
            if not (isinstance(left, int | float) and isinstance(right, int | float)):
                self.budget.build(sizes[0] * sizes[1])
        if operator == "**" and not (_small(left) and _small(right)):
            raise BudgetSpent("powers of large numbers are not supported")
        made = super().call_binop(context, operator, left, right)
        if isinstance(made, int) and abs(made) > NUMBER_MAX:
            raise BudgetSpent("it computes with numbers that are too large")
        self.budget.build(_size(made))
        return made

    def _foresee(self, owner: Any, name: str, args: Sequence[Any]) -> None:
        """Pays for what a method may build before it builds it."""
        if name == "replace" and len(args) >= 2:
            self.budget.build((len(owner) + 1) * max(1, _size(args[1])))
        elif name == "join" and args:
            self._pay_join(owner, args[0])
        elif name in ("split", "rsplit", "splitlines"):
            self.budget.build(4 * len(owner))  # a short string of its own for every few characters

    def _pay_join(self, glue: str, items: Any) -> None:
        if isinstance(items, str | list | tuple | Mapping):
            self.budget.build(sum(_size(item) + len(glue) for item in items))

    def _output(self, value: Any) -> Any:
        self.budget.build(_size(value))
        return value

    def _counted(self, items: Any) -> Iterator[Any]:
        for item in items:
            self.budget.turn()
            yield item

    def _concatenated(self, items: list[Any]) -> str:
        texts = [str(item) for item in items]
        self.budget.build(sum(len(text) for text in texts))
        return "".join(texts)

    def _replaced(self, text: Any, old: str, new: str, count: int = -1) -> str:
        self.budget.build((len(str(text)) + 1) * max(1, len(new)))
        return str(text).replace(old, new, -1 if count is None else count)

    def _joined(self, items: Any, glue: str = "", attribute: str | None = None) -> str:
        texts: list[str] = []
        for item in self._counted(items):
            texts.append(str(self.getitem(item, attribute) if attribute is not None else item))
            self.budget.build(len(texts[-1]) + len(glue))
        return glue.join(texts)

    def _indented(self, text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        pad = width if isinstance(width, str) else " " * min(int(width), 256)
        lines = str(text).split("\n")
        self.budget.build(len(str(text)) + len(lines) * len(pad))
        padded = [pad + line if (line or blank) and (first or at) else line for at, line in enumerate(lines)]
        return "\n".join(padded)


@attrs.frozen
class ChatTemplate:
    """A template's text. Rendering starts from nothing each time, so that one request's budget is its own."""

    source: str

    def render(self, messages: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> str:
        """Raises RefusalError invalid_value: it refuses these messages, makes no sense, or spends its budget."""
        try:
            environment = _Environment(_Budget())
            pieces = environment.from_string(self.source).generate(messages=list(messages), **values)
            return "".join(pieces)
        except (TemplateError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as why:
            raise refuse("invalid_value", f"the chat template refuses this: {why}", param="messages") from why


def _small(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= 1024


def _size(value: Any) -> int:
    if isinstance(value, str | list | tuple | Mapping):
        return len(value)
    return 0 if isinstance(value, bool | int | float) or value is None else 1


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=min(indent, 16) if indent else None)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    """The date, as some templates put it into the system message."""
    if len(form) > 64 or any(sign.isdigit() for sign in form):  # "%1000000000d" is a width
        raise TemplateError("a date's form is short and has no widths")
    return datetime.now(tz=UTC).strftime(form)
