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


def public_names(path: Path) -> set[str]:
    """The classes, aliases and constants that a module defines at its top; functions are called by their module."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return {name for name in names if not name.startswith("_") and len(name) > 1}


def test_one_name_means_one_thing_in_messages_and_lanes():
    owners: dict[str, str] = {}
    for module, path in sorted(MODULES.items()):
        for name in public_names(path) if not module.startswith("hydra.protocol.model.") else ():
            assert name not in owners, f"{name} is of {owners[name]} and of {module}"
            owners[name] = module
