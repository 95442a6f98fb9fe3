"""One noun, one thing; and nothing is named that nobody uses.

A noun is a class, a function or a type that another file may import. A constant counts where another file imports it.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Mapping

import pytest

from tests.unit.house.pending import TWICE, UNUSED
from tests.unit.house.sources import ROOT, files, last_name, relative, tree

# Said again and again because each file has its own.
EVERYWHERE = {"main", "log", "T", "Ts", "S", "A"}
# Tables that every machine has under one name, each read through its module.
OF_EVERY_MACHINE = {"TRANSITIONS"}
# Instruments: the simulator is there for tests and scenarios.
FOR_TESTS = ("simulation/",)
# Decorators that change what a function is, and register it nowhere.
PLAIN_DECORATORS = {
    "property", "cached_property", "staticmethod", "classmethod", "overload", "cache", "lru_cache", "contextmanager",
    "asynccontextmanager", "frozen", "define", "mutable", "runtime_checkable",
}  # fmt: skip
# What is read by nothing in the house, and why it is there.
CALLED_FROM_OUTSIDE = {
    ("actors/core/transitions.py", "as_markdown"): "SPEC.md is compared with it",
    ("actors/sessions/sessions.py", "replays"): "what a story of the simulator counts",
    ("protocol/wires/wire.py", "Wires"): "what both transports implement",
    ("http/client_stream.py", "wait_send_all_might_not_block"): "trio's stream",
    ("http/client_stream.py", "send_eof"): "trio's stream",
    ("http/strict_http.py", "maybe_extract_lines"): "h11's buffer",
    ("http/strict_http.py", "next_event"): "h11's connection",
    ("text/chat_template/sandbox.py", "call_binop"): "jinja2's sandbox",
}
OWN_READS_MAX = 20  # of a name in its own definition
VISITORS = "visit_"  # by the class of a node, from ast and jinja2


def nouns(module: ast.Module) -> list[str]:
    """Public classes, functions and types that a file defines at its top."""
    names = [
        node.name for node in module.body if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    names += [name for name in constants(module) if not name.isupper()]
    return [name for name in names if not name.startswith("_")]


def constants(module: ast.Module) -> list[str]:
    """Names that are assigned at the top of a file."""
    names: list[str] = []
    for node in module.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names += [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
    return [name for name in dict.fromkeys(names) if not name.startswith("_")]


def imported(modules: Iterable[ast.Module]) -> set[tuple[str, str]]:
    """(module, name) of everything that some file imports from a file of the house."""
    nodes = [node for module in modules for node in ast.walk(module) if isinstance(node, ast.ImportFrom)]
    return {(node.module or "", alias.name) for node in nodes for alias in node.names}


def twice(modules: Mapping[str, ast.Module]) -> set[str]:
    """Nouns that two files define, and constants that two files define for others."""
    taken = imported(modules.values())
    places: dict[str, set[str]] = {}
    for name, module in modules.items():
        shared = [constant for constant in constants(module) if constant.isupper() and (name, constant) in taken]
        for noun in [*nouns(module), *shared]:
            places.setdefault(noun, set()).add(name)
    return {noun for noun, where in places.items() if len(where) > 1} - EVERYWHERE - OF_EVERY_MACHINE


def reads(node: ast.AST) -> Counter[str]:
    """How often each name is read: bare, as an attribute, in a pattern, or as a text that is nothing but a name."""
    found: Counter[str] = Counter()
    for part in ast.walk(node):
        if isinstance(part, ast.Name | ast.Attribute) and isinstance(part.ctx, ast.Load):
            found[last_name(part)] += 1
        elif isinstance(part, ast.MatchClass):
            found.update(part.kwd_attrs)
        elif isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value.isidentifier():
            found[part.value] += 1
    return found


def defined(module: ast.Module) -> list[tuple[str, ast.AST]]:
    """Whatever a file defines for others, with where: nouns, constants, methods and fields of classes."""
    found: list[tuple[str, ast.AST]] = []
    for node in module.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.append((node.name, node))
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
                    found.append((part.name, part))
                elif isinstance(part, ast.AnnAssign):
                    found.append((last_name(part.target), part.target))
    found = [(name, node) for name, node in found if not is_registered(node)]
    found += [(name, ast.Pass()) for name in constants(module)]
    return [(name, node) for name, node in found if not name.startswith(("_", VISITORS))]


def is_registered(node: ast.AST) -> bool:
    """Whether a decorator hands it on: a command, a route, a fixture."""
    decorators = [
        decorator.func if isinstance(decorator, ast.Call) else decorator
        for decorator in getattr(node, "decorator_list", [])
    ]
    return any(last_name(decorator) not in PLAIN_DECORATORS for decorator in decorators)


def unused(modules: Mapping[str, ast.Module], readers: Iterable[ast.Module]) -> set[tuple[str, str]]:
    """(file, name) of what is read nowhere but where it is defined."""
    total: Counter[str] = Counter()
    for module in [*modules.values(), *readers]:
        total.update(reads(module))
    found: set[tuple[str, str]] = set()
    for file, module in modules.items():
        rare = [(name, node) for name, node in defined(module) if total[name] <= OWN_READS_MAX]
        found |= {(file, name) for name, node in rare if total[name] <= reads(node)[name]}
    return found


def parsed(folder: str) -> list[ast.Module]:
    return [ast.parse(path.read_text()) for path in sorted((ROOT / folder).rglob("*.py"))]


def test_one_name_is_one_thing() -> None:
    modules = {"hydra." + relative(path).removesuffix(".py").replace("/", "."): tree(path) for path in files()}
    assert twice(modules) == TWICE


def test_nothing_is_there_that_nobody_uses() -> None:
    others = [*parsed("scenarios"), *parsed("install")]
    house = {relative(path): tree(path) for path in files()}
    found = unused(house, others)
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    played = {entry for entry in found if entry[0].startswith(FOR_TESTS) and re.search(rf"\b{entry[1]}\b", tests)}
    found -= played
    assert found == UNUSED | set(CALLED_FROM_OUTSIDE)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("class Lane: ...", "class Lane: ...", {"Lane"}),
        ("def pull(): ...", "async def pull(): ...", {"pull"}),
        ("Answer: TypeAlias = int", "class Answer: ...", {"Answer"}),
        ("LIMIT = 1", "LIMIT = 2\nfrom hydra.a import LIMIT", set()),
        ("LIMIT = 1\nfrom hydra.b import LIMIT", "LIMIT = 2\nfrom hydra.a import LIMIT", {"LIMIT"}),
        ("class _Own: ...\ndef main(): ...", "class _Own: ...\ndef main(): ...", set()),
    ],
)
def test_the_rule_sees_a_name_that_two_have(one: str, other: str, same: set[str]) -> None:
    assert twice({"hydra.a": ast.parse(one), "hydra.b": ast.parse(other)}) == same


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def dead(): ...", {"dead"}),
        ("def again(): return again()", {"again"}),
        ("class Dead:\n    def used(self): ...\nx.used", {"Dead"}),
        ("class Used:\n    def dead(self): ...\nUsed", {"dead"}),
        ("class Used:\n    dead: int\n    alive: int\nUsed.alive", {"dead"}),
        ("class Used:\n    seen: int\nmatch x:\n    case Used(seen=1): ...", set()),
        ("LIMIT = 1\nOTHER = LIMIT", {"OTHER"}),
        ("@app.post('/x')\ndef route(): ...", set()),
        ("@property\ndef dead(): ...", {"dead"}),
        ("def named(): ...\ngetattr(x, 'named')", set()),
        ("def _own(): ...\nclass V:\n    def visit_Call(self): ...\nV", set()),
    ],
)
def test_the_rule_sees_what_nobody_uses(source: str, names: set[str]) -> None:
    assert unused({"a.py": ast.parse(source)}, []) == {("a.py", name) for name in names}
