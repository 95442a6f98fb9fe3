"""Imports point down: each package's first lines say what it may import, and nothing imports itself by a detour."""

import ast
from collections.abc import Mapping

import pytest

from tests.unit.house.pending import CYCLES
from tests.unit.house.sources import files, module_name, tree

SENTENCE = "May import: "
NOTHING, EVERYTHING = "nothing of Hydra", "everything"
THE_REST = ("the rest of ", "every other part of ", "all other parts of ", "every part of ")


def imports(module: ast.Module, known: frozenset[str]) -> set[str]:
    """The files of the house that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hydra":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in known else node.module or "" for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "hydra"}
    return found


def allowed(package: str, sentence: str, known: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    """(what it may import, what it may not all the same), as packages with all that is in them."""
    words = sentence.split(".  ")[0].split(". ")[0].rstrip(".")
    if words == NOTHING:
        return frozenset(), frozenset()
    if words == EVERYTHING:
        return frozenset({"hydra"}), frozenset()
    if words.startswith("every room but "):
        rooms = words.removeprefix("every room but ").replace(" and ", ", ").split(", ")
        return frozenset({"hydra"}), frozenset(f"hydra.{room}" for room in rooms)
    parent, names = package.rpartition(".")[0], set()
    for name in words.replace(" and ", ", ").split(", "):
        whole = next((name.removeprefix(start) for start in THE_REST if name.startswith(start)), None)
        beside = f"{parent}.{name}"
        names.add(f"hydra.{whole}" if whole is not None else beside if beside in known else f"hydra.{name}")
    unknown = names - known
    assert not unknown, f"{package} may import {unknown}, which is nowhere"
    return frozenset(names), frozenset()


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def strays(modules: Mapping[str, ast.Module], packages: frozenset[str]) -> set[tuple[str, str]]:
    """(file, what it imports) against the sentence of any package that the file is in."""
    known = frozenset(modules)
    arrows = {name: imports(module, known) for name, module in modules.items()}
    wrong: set[tuple[str, str]] = set()
    for package in packages:
        sentence = said(modules[package])
        assert sentence is not None, f"{package} does not say what it may import"
        may, may_not = allowed(package, sentence, known)
        for name, targets in arrows.items():
            for target in targets if inside(name, package) else ():
                fine = any(inside(target, one) for one in may) and not any(inside(target, one) for one in may_not)
                if not fine and not inside(target, package):
                    wrong.add((name, target))
    return wrong


def said(module: ast.Module) -> str | None:
    """The sentence of a package, on one line or several."""
    words = " ".join((ast.get_docstring(module) or "").split())
    return words.split(SENTENCE, 1)[1].split(" Refuses to know")[0] if SENTENCE in words else None


def cycles(arrows: Mapping[str, set[str]]) -> set[tuple[str, ...]]:
    """Files that import one another by some way: the groups in which everyone reaches everyone."""
    reach = {name: set(targets) for name, targets in arrows.items()}
    changed = True
    while changed:
        changed = False
        for targets in reach.values():
            more = set().union(*(reach.get(target, set()) for target in targets)) - targets
            if more:
                targets |= more
                changed = True
    rings = {name for name, targets in reach.items() if name in targets}
    return {tuple(sorted(other for other in rings if other in reach[name] and name in reach[other])) for name in rings}


def house() -> dict[str, ast.Module]:
    return {module_name(path): tree(path) for path in files()}


def test_every_package_keeps_to_what_it_says() -> None:
    packages = frozenset(module_name(path) for path in files() if path.name == "__init__.py") - {"hydra"}
    assert strays(house(), packages) == set()


def test_nothing_imports_itself_by_a_detour() -> None:
    modules = house()
    known = frozenset(modules)
    assert cycles({name: imports(module, known) - {name} for name, module in modules.items()}) == CYCLES


PACKAGES = {
    "hydra": "'''The house.'''",
    "hydra.low": "'''Low. May import: nothing of Hydra.\nRefuses to know: all.'''",
    "hydra.low.a": "import sys",
    "hydra.high": "'''High. May import: low, beside.one.'''",
    "hydra.high.core": "'''Core. May import: low.'''",
    "hydra.high.core.a": "from hydra.low import a",
    "hydra.high.part": "'''Part. May import: core, low.'''",
    "hydra.high.part.a": "from hydra.high.core.a import b\nfrom hydra.low.a import c",
    "hydra.beside": "'''Beside. May import: every room but high and low.'''",
    "hydra.beside.one": "import hydra.beside.two",
    "hydra.beside.two": "import math",
    "hydra.settings": "",
}


@pytest.mark.parametrize(
    ("file", "source", "stray"),
    [
        ("hydra.low.a", "import hydra.high", "hydra.high"),
        ("hydra.low.a", "def f():\n    from hydra.high.core.a import b", "hydra.high.core.a"),
        ("hydra.high.core.a", "from hydra.high.part.a import b", "hydra.high.part.a"),
        ("hydra.high.core.a", "from hydra.beside.one import b", "hydra.beside.one"),
        ("hydra.high.part.a", "from hydra.beside import two", "hydra.beside.two"),
        ("hydra.beside.one", "from hydra.low import a", "hydra.low.a"),
        ("hydra.beside.one", "from hydra.settings import x", None),
        ("hydra.high.part.a", "from hydra.high.core import a", None),
    ],
)
def test_the_rule_sees_an_arrow_that_points_up(file: str, source: str, stray: str | None) -> None:
    modules = {name: ast.parse(text) for name, text in {**PACKAGES, file: source}.items()}
    packages = frozenset({"hydra.low", "hydra.high", "hydra.high.core", "hydra.high.part", "hydra.beside"})
    assert strays(modules, packages) == ({(file, stray)} if stray is not None else set())


def test_the_rule_sees_a_package_that_says_nothing() -> None:
    with pytest.raises(AssertionError, match="does not say"):
        strays({"hydra.mute": ast.parse("'''Mute.'''")}, frozenset({"hydra.mute"}))
    with pytest.raises(AssertionError, match="nowhere"):
        strays({"hydra.odd": ast.parse("'''Odd. May import: moon.'''")}, frozenset({"hydra.odd"}))


@pytest.mark.parametrize(
    ("arrows", "rings"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, set()),
        ({"a": {"b"}, "b": {"a"}}, {("a", "b")}),
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}, {("a", "b", "c")}),
        ({"a": {"b"}, "b": {"a", "c"}, "c": {"d"}, "d": {"c"}}, {("a", "b"), ("c", "d")}),
    ],
)
def test_the_rule_sees_a_ring(arrows: dict[str, set[str]], rings: set[tuple[str, ...]]) -> None:
    assert cycles(arrows) == rings
