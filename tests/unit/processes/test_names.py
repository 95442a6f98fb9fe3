"""What the front door, the processes and the benches call their things is called so nowhere else in the package."""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[3] / "hydra"
ROOMS = ("cli/", "processes/", "log/", "bench/", "actors/families/", "settings.py", "complaint.py")


def importable(tree):
    """Classes, functions and constants of a module; loggers and type variables are nobody's import."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign) and not ast.unparse(node.value or node).startswith(
            ("structlog.", "TypeVar(")
        ):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


def test_a_name_means_one_thing():
    places = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for name in importable(ast.parse(path.read_text())):
            if not name.startswith("_"):
                places[name].add(str(path.relative_to(PACKAGE)))
    assert len(places) > 1000 and places["GIGABYTE"] == {"protocol/units.py"}
    twice = {
        name: where for name, where in places.items() if len(where) > 1 and any(p.startswith(ROOMS) for p in where)
    }
    assert not twice
