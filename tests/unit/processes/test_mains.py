"""One main per process: what each of them may load before it knows what it is to do, read from the sources."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def file_of(module):
    path = ROOT / Path(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


def imports_at_once(module):
    """Not those of function bodies, and not those that only a type checker sees."""
    for node in ast.parse(file_of(module).read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def loaded_by(module):
    """All modules of Hydra that come with it, and the libraries."""
    seen, waiting, libraries = set(), [module], set()
    while waiting:
        name = waiting.pop()
        if not name.startswith("hydra."):
            libraries.add(name.split(".")[0])
        elif name not in seen and file_of(name) is not None:
            seen.add(name)
            waiting += imports_at_once(name)
    return seen, libraries


@pytest.mark.parametrize(
    ("process", "never"),
    [
        ("coordinator", {"torch", "quart", "tokenizers"}),
        ("worker", {"torch", "quart", "tokenizers"}),  # torch comes where the device is made
        ("frontend", {"torch"}),
        ("up", {"torch", "quart", "tokenizers"}),
        ("worker_parent", {"torch", "quart", "tokenizers"}),
    ],
)
def test_a_process_loads_no_room_that_it_does_not_live_in(process, never):
    modules, libraries = loaded_by(f"hydra.processes.{process}")
    assert len(modules) > 20 and "trio" in libraries
    assert not libraries & never
    others = {"coordinator", "worker", "frontend"} - {process}
    assert not {f"hydra.processes.{name}" for name in others} & modules, "one main does not bring another"
