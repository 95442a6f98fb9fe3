"""The house rules, as tests over the source text: who may look into which room, and what is never written.

More of them, each in a file of its own, in tests/unit/house: sizes, names, arrows, tools; and in
tests/unit/protocol/test_spec.py, that the contract and the code say the same.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "hydra").rglob("*.py"))

MAY_IMPORT = {
    "log": set(),
    "protocol": set(),
    "kernels": {"protocol"},
    "store": {"protocol"},
    "actors": {"protocol"},
    "text": {"protocol", "store"},
    "http": {"protocol", "store", "text", "actors.client"},
    "simulation": {"protocol", "store", "text", "http", "actors"},
}
ONLY_IN = {
    "zmq": ("protocol/wires/zmq_", "bench/hop"),  # the bench needs the other side of its ratios
    "torch": (
        "kernels/",
        "bench/bare_loop.py",
        "bench/device_product_child.py",
        "bench/load_child.py",
        "bench/peak_child.py",
        "bench/quant_child.py",
        "bench/rows_child.py",
    ),
    "quart": ("http/",),
    "quart_trio": ("http/",),
    "hypercorn": ("http/",),
    "tokenizers": ("text/",),
    "huggingface_hub": ("store/",),
    "jinja2": ("text/chat_template/",),
    "msgpack": ("protocol/",),
    "cattrs": ("protocol/", "processes/child_spec.py"),
}
SHELLS = {
    "core/host.py",
    "core/gateway.py",
    "families/coordinator.py",
    "families/frontend.py",
    "families/lifeline.py",
    "families/member_host.py",
    "families/parent.py",
    "families/store_server.py",
    "families/worker.py",
    "membership/dialling.py",
    "stage/stage_thread.py",
}
IMPURE = {"trio", "time", "threading", "os", "socket", "subprocess", "secrets", "asyncio"}
# What turns bytes into behaviour. Nothing in Hydra needs any of it.
FORBIDDEN_MODULES = {
    "_pickle", "builtins", "cloudpickle", "code", "codeop", "dill", "imp", "joblib", "jsonpickle", "marshal", "pickle",
    "pickletools", "runpy", "shelve", "yaml", "zipimport", "torch.hub", "torch.package", "torch.utils.cpp_extension",
    "transformers",
}  # fmt: skip
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "execfile",
    "Template",
    "jinja2.Template",
}  # those render unfenced
FORBIDDEN_ATTRIBUTES = {
    "torch.load", "torch.jit", "torch.hub", "torch.package", "torch.ops.load_library", "torch.classes.load_library",
    "np.load", "np.fromfile", "numpy.load", "yaml.load", "os.system", "os.popen", "importlib.import_module",
    "importlib.util", "importlib.machinery", "sys.path", "sys.modules", "jinja2.Environment",
}  # fmt: skip
FORBIDDEN_NAMES_FROM = {"jinja2": {"Environment"}, "importlib": {"import_module", "util", "machinery"}}
FORBIDDEN_KEYWORDS = {"allow_pickle", "trust_remote_code", "weights_only"}
READERS = ("store/", "kernels/", "text/", "http/")
STARTS_PROGRAMS = {"multiprocessing", "pty", "ctypes", "cffi"}  # what the rooms that read models do without
# a library of our own sources, by its path
OPENS_OUR_OWN = {f"kernels/native/{name}.py" for name in ("library", "products", "program")}


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
    actors = [path for path in FILES if relative(path).startswith("actors/")]
    machines = [path for path in actors if relative(path).removeprefix("actors/") not in SHELLS]
    assert len(machines) == len(actors) - len(SHELLS) > 10
    for path in machines:
        impure = {name.split(".")[0] for name in imports_of(ast.parse(path.read_text()))} & IMPURE
        assert not impure, f"{relative(path)} imports {impure}"
        assert "async def" not in path.read_text() or path.stem == "client", f"{relative(path)} waits"


def executes(tree: ast.AST) -> list[str]:
    """Every place in a source that could run what a file, a request or a message says."""
    found = [name for name in imports_of(tree) if FORBIDDEN_MODULES & {name, name.split(".")[0]}]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in FORBIDDEN_CALLS:
            found.append(ast.unparse(node.func))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in FORBIDDEN_ATTRIBUTES:
            found.append(ast.unparse(node))
        if isinstance(node, ast.ImportFrom):
            found += [name.name for name in node.names if name.name in FORBIDDEN_NAMES_FROM.get(node.module or "", ())]
            found += [name.name for name in node.names if f"{node.module}.{name.name}" in FORBIDDEN_ATTRIBUTES]
        if isinstance(node, ast.keyword) and node.arg in FORBIDDEN_KEYWORDS:
            found.append(node.arg)
    return found


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_nothing_that_executes_data(path: Path) -> None:
    allowed = {"sys.path"} if relative(path) == "__main__.py" else set()  # which only takes a place away
    assert not set(executes(ast.parse(path.read_text()))) - allowed, relative(path)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch.hub",
        "import yaml",
        "from transformers import AutoModel",
        "eval(text)",
        "exec(text)",
        "import importlib\nimportlib.import_module(name)",
        "from importlib import import_module",
        "import torch\ntorch.load(path)",
        "from torch import load",
        "np.load(path, mmap_mode='r')",
        "f(path, allow_pickle=True)",
        "from jinja2 import Environment",
        "from jinja2 import Template\nTemplate(text)",
        "import os\nos.system(line)",
        "from os import popen",
        "import sys\nsys.path.insert(0, folder)",
    ],
)
def test_the_rule_sees_what_it_is_for(source: str) -> None:
    assert executes(ast.parse(source))


@pytest.mark.parametrize("path", [path for path in FILES if relative(path).startswith(READERS)], ids=relative)
def test_rooms_that_read_models_load_no_libraries(path: Path) -> None:
    allowed = {"ctypes"} if relative(path) in OPENS_OUR_OWN else set()
    used = STARTS_PROGRAMS & {name.split(".")[0] for name in imports_of(ast.parse(path.read_text()))} - allowed
    assert not used, f"{relative(path)} imports {used}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_every_file_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{relative(path)} opens without its plan"


def test_a_worker_does_not_wait_for_a_compiler() -> None:
    """torch's own takes about as long to import as torch: a worker that is started again would be missed for longer."""
    rooms = "hydra.processes.worker, hydra.actors.families.worker, hydra.kernels.step.runner"
    source = f"import sys, {rooms}; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stdout + done.stderr
