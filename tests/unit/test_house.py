"""The house rules, as tests over the source text: who may look into which room, and what is never written."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "hydra").rglob("*.py"))

MAY_IMPORT = {
    "protocol": set(),
    "kernels": {"protocol"},
    "store": {"protocol"},
    "actors": {"protocol"},
    "http": {"protocol", "store", "actors.client"},
}
ONLY_IN = {
    "zmq": ("protocol/zmq_", "bench/hop"),  # the bench needs the other side of its ratios
    "torch": ("kernels/", "bench/bare_loop.py"),
    "quart": ("http/",),
    "quart_trio": ("http/",),
    "hypercorn": ("http/",),
    "tokenizers": ("http/",),
    "huggingface_hub": ("store/",),
    "jinja2": ("http/",),
    "msgpack": ("protocol/",),
    "cattrs": ("protocol/", "child_spec.py"),
}
SHELLS = {"cell", "coordinator", "frontend", "lifeline", "parent", "post", "stage_thread", "store_server", "worker"}
IMPURE = {"trio", "time", "threading", "os", "socket", "subprocess", "secrets", "asyncio"}
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "imp"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def imports_of(tree: ast.AST) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT / "hydra"))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_point_down(path: Path) -> None:
    room = relative(path).split("/")[0]
    if room not in MAY_IMPORT:
        return  # the front door knows all rooms
    for name in imports_of(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] != "hydra" or parts[1:2] == [room]:
            continue
        below = MAY_IMPORT[room]
        assert parts[1] in below or ".".join(parts[1:3]) in below, f"{relative(path)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    for name in imports_of(ast.parse(path.read_text())):
        rooms = ONLY_IN.get(name.split(".")[0])
        assert rooms is None or relative(path).startswith(rooms), f"{relative(path)} imports {name}"


def test_machines_have_no_clock_no_loop_and_no_world() -> None:
    machines = [path for path in FILES if path.parent.name == "actors" and path.stem not in SHELLS]
    assert len(machines) > 10
    for path in machines:
        impure = {name.split(".")[0] for name in imports_of(ast.parse(path.read_text()))} & IMPURE
        assert not impure, f"{relative(path)} imports {impure}"
        assert "async def" not in path.read_text() or path.stem == "client", f"{relative(path)} waits"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_nothing_that_executes_data(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not FORBIDDEN_MODULES & {name.split(".")[0] for name in imports_of(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, f"{relative(path)}:{node.lineno} calls {node.func.id}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            called = f"{node.value.id}.{node.attr}"
            assert called not in ("torch.load", "yaml.load", "np.load"), f"{relative(path)}:{node.lineno} {called}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_every_file_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{relative(path)} opens without its plan"
