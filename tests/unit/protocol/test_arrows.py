"""Arrows inside the room: what is said knows no wire that carries it, and no two files know each other."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[3]
ROOM = ROOT / "hydra" / "protocol"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in ROOM.rglob("*.py")}


def imported(path: Path) -> set[str]:
    """The modules of this room that a file imports; `from package import module` counts as the module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            names |= inner or {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & set(MODULES)


def test_what_is_said_knows_no_wire():
    for module, path in MODULES.items():
        if not module.startswith("hydra.protocol.wires"):
            upward = {name for name in imported(path) if name.startswith("hydra.protocol.wires")}
            assert not upward, f"{module} imports {upward}"


def test_no_two_files_know_each_other():
    order = list(TopologicalSorter({module: imported(path) for module, path in MODULES.items()}).static_order())
    assert set(order) == set(MODULES)
