"""The source text of the house, read and parsed once for all its rules."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
HOUSE = ROOT / "hydra"


@cache
def files() -> tuple[Path, ...]:
    return tuple(sorted(HOUSE.rglob("*.py")))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def relative(path: Path) -> str:
    return str(path.relative_to(HOUSE))


def module_name(path: Path) -> str:
    """As it is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def last_name(node: ast.AST) -> str:
    """`c` of `a.b.c`; empty for what is no name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


@cache
def constructed(module: ast.AST) -> set[str]:
    """Names that are called, or handed on to be called: `X(...)`, `X.of(...)`, `partial(X, ...)`."""
    calls = [node for node in ast.walk(module) if isinstance(node, ast.Call)]
    names = {last_name(call.func) for call in calls}
    names |= {
        call.func.value.id
        for call in calls
        if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name)
    }
    return names | {last_name(argument) for call in calls for argument in call.args if isinstance(argument, ast.Name)}


@cache
def matched(module: ast.AST) -> set[str]:
    """Classes in `case X(...)` and in `isinstance(_, X)`."""
    names = {last_name(node.cls) for node in ast.walk(module) if isinstance(node, ast.MatchClass)}
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and last_name(node.func) == "isinstance":
            names |= {last_name(part) for part in ast.walk(node.args[1])}
    return names


@cache
def read_names(module: ast.AST) -> set[str]:
    """All names that a source reads: bare ones, attributes, keywords of calls, and patterns."""
    names: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.keyword) and node.arg is not None:
            names.add(node.arg)
        elif isinstance(node, ast.MatchClass):
            names |= set(node.kwd_attrs)
    return names
