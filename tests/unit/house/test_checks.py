"""Every machine says what must always be true of it: it has a `check`, which the simulator and the unit tests call."""

import ast

from tests.unit.house.pending import UNCHECKED
from tests.unit.house.sources import files, relative, tree

REMEMBERS_NOTHING = {
    ("actors/families/status.py", "ClusterStatus"): "it reads the other three",
    ("actors/membership/scout.py", "Scout"): "an order goes out, an answer comes back",
}


def machines(module: ast.Module) -> dict[str, bool]:
    """Classes with a `handle(self, event, now_s)` of their own, and whether they can check themselves."""
    found: dict[str, bool] = {}
    for node in module.body:
        if not isinstance(node, ast.ClassDef) or any("Protocol" in ast.unparse(base) for base in node.bases):
            continue
        methods = {part.name: part for part in node.body if isinstance(part, ast.FunctionDef)}
        handle = methods.get("handle")
        if handle is not None and [argument.arg for argument in handle.args.args] == ["self", "event", "now_s"]:
            found[node.name] = "check" in methods
    return found


def test_every_machine_can_check_itself() -> None:
    rooms = [path for path in files() if relative(path).startswith("actors/")]
    found = {(relative(path), name): checks for path in rooms for name, checks in machines(tree(path)).items()}
    assert len(found) > 6
    assert {machine for machine, checks in found.items() if not checks} == UNCHECKED | set(REMEMBERS_NOTHING)


def test_the_rule_sees_a_machine_without_a_check() -> None:
    bare = "class A:\n    def handle(self, event, now_s): ...\n"
    assert machines(ast.parse(bare)) == {"A": False}
    assert machines(ast.parse(bare + "    def check(self): ...")) == {"A": True}
    assert machines(ast.parse("class B(Protocol):\n    def handle(self, event, now_s): ...")) == {}
    assert machines(ast.parse("class C:\n    def handle(self, text): ...")) == {}
