"""The world inside a chat template: closed. What is not named here cannot be reached, called or computed.

Jinja's sandbox keeps a template away from the insides of objects; this one also keeps it away from work without end.
A pass over the parsed template puts a meter on every loop, comparison, concatenation, slice and literal; operators,
filters, tests and calls are metered where they run. Which budget pays is for the rendering to say.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, cast

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

from hydra.text.chat_template.budget import BudgetSpent, current, size_of
from hydra.text.chat_template.filters import CALL_TURNS, metered_filters, metered_tests, pay_pieces, pay_replace

NODES_PER_TURN = 16  # parts of an expression
LITERAL_FREE = 4  # items of a list in the source that are not worth counting
DATE_FORM_MAX = 64
Plain = str | int | float | None
# Of strings, lists and mappings; all others can grow without bound, or do nothing useful.
METHODS = {
    "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "startswith", "endswith", "lower", "upper",
    "title", "capitalize", "find", "rfind", "index", "rindex", "count", "replace", "join", "isdigit",
    "isdecimal", "isnumeric", "isalpha", "isalnum", "isspace", "islower", "isupper", "removeprefix",
    "removesuffix", "partition", "rpartition", "items", "keys", "values", "get", "casefold", "swapcase",
}  # fmt: skip
FOREIGN = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.EvalContextModifier)
OF_LOOPS, OF_CYCLERS = {"cycle", "changed"}, {"next", "reset"}


class GenerationTag(Extension):
    """`{% generation %}` marks what a model has said, for training. Here its inside is simply part of the text."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Meters(NodeTransformer):
    """Puts a meter wherever a template works without calling anything."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - the visitor's names
        self.generic_visit(node)
        if node.recursive:
            raise BudgetSpent("recursive loops are not supported")
        node.iter = _through("counted", node.iter)
        node.body.insert(0, _toll(node.body))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.body.insert(0, _toll(node.body))
        return node

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.body.insert(0, _toll(node.body))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through("concatenated", nodes.List(node.nodes))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _weighed(node.expr)
        for operand in node.ops:
            operand.expr = _weighed(operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        parts = (node.arg.start, node.arg.stop, node.arg.step)
        return _through("sliced", node.node, *[part or nodes.Const(None) for part in parts])

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through("literal", node) if len(node.items) > LITERAL_FREE else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through("literal", node) if len(node.items) > LITERAL_FREE and node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        for pair in node.items:
            if not isinstance(pair.key, nodes.Const):
                pair.key = _through("key", pair.key)
        return _through("literal", node) if len(node.items) > LITERAL_FREE else node

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if isinstance(node, FOREIGN):
            raise SecurityError(f"{type(node).__name__} is not available to chat templates")
        return super().visit(node, *args, **kwargs)


def _toll(body: list[nodes.Node]) -> nodes.Node:
    """A statement that pays for one pass through `body`: its expressions, and its own text."""
    parts = [part for statement in body for part in (statement, *statement.find_all(nodes.Node))]
    written = sum(len(part.data) for part in parts if isinstance(part, nodes.TemplateData))
    return nodes.ExprStmt(_through("toll", nodes.Const(len(parts) // NODES_PER_TURN), nodes.Const(written)))


def _through(meter: str, value: nodes.Node, *args: nodes.Expr) -> nodes.Filter:
    """`value` through one of our meters: no source can write the space in its name."""
    return nodes.Filter(cast("nodes.Expr", value), f"{meter} ", list(args), [], None, None)


def _weighed(value: nodes.Expr) -> nodes.Expr:
    return value if isinstance(value, nodes.Const) else _through("weighed", value)


class SandboxEnvironment(ImmutableSandboxedEnvironment):
    """One for all renderings of a template. Everything in it pays from the current budget."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", GenerationTag],
            finalize=_written,
            optimized=False,
            cache_size=0,
        )
        self.globals = {
            "range": self.globals["range"], "dict": _dict, "namespace": TemplateNamespace, "cycler": Cycler,
            "joiner": Joiner, "raise_exception": _raise_exception, "strftime_now": _strftime_now,
        }  # fmt: skip
        self._callables = tuple(self.globals.values())
        meters = {
            "counted": _counted, "concatenated": _concatenated, "weighed": _weigh_one, "sliced": _sliced,
            "literal": _literal, "key": _plain_key, "toll": _pay_toll,
        }  # fmt: skip
        result: Any = metered_filters() | {f"{name} ": meter for name, meter in meters.items()}
        self.filters = result
        tests: Any = metered_tests()
        self.tests = tests

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        metered: nodes.Template = _Meters().visit(super()._parse(source, name, filename))
        return metered

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, argument if isinstance(argument, Undefined) else _plain_key(argument))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - jinja's names
        budget = current()
        budget.work(CALL_TURNS)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str | list | tuple | Mapping) and name in METHODS:
            args = _foresee(owner, name, args)
        elif not isinstance(__obj, Macro | Undefined):
            budget.weigh(*args, *kwargs.values())
            known = isinstance(__obj, Joiner) or any(__obj is one for one in __self._callables)
            known |= isinstance(owner, LoopContext) and name in OF_LOOPS
            known |= isinstance(owner, Cycler) and name in OF_CYCLERS
            if not known:
                raise SecurityError(f"{name or type(__obj).__name__} cannot be called by chat templates")
        return budget.received(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = current()
        budget.work()
        for side in (left, right):
            if not isinstance(side, str | int | float | list | tuple | Undefined):
                raise SecurityError(f"chat templates cannot compute with a {type(side).__name__}")
            budget.number(side)
        if isinstance(left, str) and operator == "%":
            raise SecurityError("formatting with % is not available to chat templates")
        if operator == "**" and not (abs(left) <= 1024 and abs(right) <= 1024):
            raise BudgetSpent("powers of large numbers are not supported")
        if not (isinstance(left, int | float) and isinstance(right, int | float)):
            if operator == "*":
                budget.build(_times(left) * _times(right))
            elif operator == "+":
                budget.build(size_of(left) + size_of(right))
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, complex):
            raise TemplateError("roots of negative numbers are not supported")
        return budget.number(result)


class TemplateNamespace(Namespace):
    """`namespace(...)`: what a loop may write to. It keeps no name that Python's insides have."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # as Jinja's own, so that `namespace(self=...)` works
        self, rest = args[0], args[1:]
        given = _dict(*rest, **kwargs)
        for name in given:
            _refuse_inside(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_inside(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


def _refuse_inside(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace cannot keep {name!r}")


def _times(value: Any) -> int:
    return max(0, value) if isinstance(value, int) else max(1, size_of(value))


def _foresee(owner: Any, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Pays for what a method may read and build before it does."""
    budget = current()
    if isinstance(owner, str):
        budget.work(1 + len(owner) // 256)
        if name == "replace" and len(args) >= 2 and all(isinstance(arg, str) for arg in args[:2]):
            pay_replace(owner, args[0], args[1])
        elif name in ("split", "rsplit", "splitlines"):
            pay_pieces(owner, args[0] if args and name != "splitlines" else None)
        elif name == "join" and args:
            items = list(budget.counted(args[0]))
            budget.build(sum(size_of(item) + len(owner) for item in items))
            args = (items, *args[1:])
    elif name in ("index", "count"):
        budget.weigh(owner)
    budget.weigh(*args)
    return args


def _written(value: Any) -> str:
    """What `{{ ... }}` writes."""
    return current().text(value)


def _counted(items: Any) -> Iterable[Any]:
    return current().counted(items)


def _pay_toll(turns: int, written: int) -> None:
    current().work(turns)
    current().build(written)


def _concatenated(items: list[Any]) -> str:
    return "".join([current().text(item) for item in items])


def _weigh_one(value: Any) -> Any:
    current().weigh(value)
    return value


def _sliced(value: Any, start: Any, stop: Any, step: Any) -> Any:
    if not isinstance(value, str | list | tuple | range):
        raise TemplateError(f"a {type(value).__name__} has no slices")
    part = value[start:stop:step]
    current().work(1 + len(part) // 256)
    current().build(len(part))
    return part


def _literal(value: Any) -> Any:
    current().build(len(value))
    return value


def _plain_key(key: Any) -> Plain:
    """Nested tuples hash by recursion without bound."""
    if key is None or isinstance(key, str | int | float):
        return key
    raise SecurityError(f"a {type(key).__name__} is no key")


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    pairs: list[tuple[Any, Any]] = []
    for arg in args:
        items = arg.items() if isinstance(arg, Mapping) else arg
        pairs += [(_plain_key(key), value) for key, value in current().counted(items)]
    current().build(len(pairs))
    return dict(pairs) | kwargs


def _raise_exception(message: Any) -> None:
    raise TemplateError(current().text(message)[:1000])


def _strftime_now(form: str) -> str:
    """The date here, as some templates put it into the system message."""
    if not isinstance(form, str) or len(form) > DATE_FORM_MAX or re.search(r"%[^A-Za-z%]*\d", form):
        raise TemplateError("a date's form is short and has no widths")
    return datetime.now().strftime(form)
