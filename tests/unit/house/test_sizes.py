"""A file is read in one sitting, a function on one screen."""

import ast

from tests.unit.house.pending import LONG_FILES, LONG_FUNCTIONS
from tests.unit.house.sources import ROOT, files, relative, tree

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70


def long_functions(module: ast.AST) -> list[str]:
    """From the first decorator's line after: what is read as one."""
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [node.name for node in functions if (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX]


def is_long(text: str) -> bool:
    return len(text.splitlines()) > FILE_LINES_MAX


def test_no_file_is_longer_than_one_reads_at_once() -> None:
    assert {relative(path) for path in files() if is_long(path.read_text())} == LONG_FILES
    assert not [path for path in (ROOT / "scenarios").glob("*.py") if is_long(path.read_text())]


def test_every_function_fits_a_screen() -> None:
    assert {(relative(path), name) for path in files() for name in long_functions(tree(path))} == LONG_FUNCTIONS
    scenarios = [ast.parse(path.read_text()) for path in (ROOT / "scenarios").glob("*.py")]
    assert not [name for module in scenarios for name in long_functions(module)]


def test_the_rules_see_what_they_are_for() -> None:
    assert is_long("line\n" * 401) and not is_long("line\n" * 400)
    body = "    pass\n" * 69
    assert long_functions(ast.parse(f"def fits():\n{body}")) == []
    assert long_functions(ast.parse(f"def long():\n    pass\n{body}")) == ["long"]
    inside = "class A:\n    async def long(self):\n" + "        pass\n" * 70
    assert long_functions(ast.parse(inside)) == ["long"]
