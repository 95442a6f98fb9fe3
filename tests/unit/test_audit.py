"""The audit hook hears what it is there for; and a model directory full of bait is loaded without a bite."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hydra.store.models.demo_model import ensure_demo_model
from tests.audit import hydra_audit

ROOT = Path(hydra_audit.ROOT)
BITTEN = "bitten"

# MODEL is a model directory with a modeling.py that leaves a file behind; `in_hydra` runs source as if it stood in a
# file of Hydra's.
PRELUDE = """
import os, sys
MODEL, HYDRA = sys.argv[1:]
def in_hydra(file, source):
    code = compile(source, HYDRA + "/" + file, "exec")
    exec(code, {"MODEL": MODEL})
"""
PLANTS = {
    "import of a module": "sys.path.insert(0, MODEL); import modeling",
    "import from below": "sys.path.insert(0, MODEL + '/below'); import deeper",
    "import by path": (
        "import importlib.util as u; s = u.spec_from_file_location('m', MODEL + '/modeling.py');"
        "s.loader.exec_module(u.module_from_spec(s))"
    ),
    "import of bytecode": (
        "import py_compile, shutil; py_compile.compile(HYDRA + '/__init__.py', MODEL + '/coded.pyc');"
        "sys.path.insert(0, MODEL); import coded"
    ),
    "run by path": "import runpy; runpy.run_path(MODEL + '/modeling.py')",
    "executed under its name": "p = MODEL + '/modeling.py'; exec(compile(open(p).read(), p, 'exec'))",
    "a library": "import ctypes; ctypes.CDLL(MODEL + '/lib.so')",
    "exec in hydra": "in_hydra('store/x.py', 'exec(open(MODEL + \"/modeling.py\").read())')",
    "eval in hydra": "in_hydra('cli.py', 'eval(\"1 + 1\")')",
    "compile in hydra": 'in_hydra(\'http/x.py\', \'compile("1", "<text>", "exec")\')',
    "a pickle in hydra": "in_hydra('kernels/x.py', 'import pickle; pickle.loads(b\"cos\\\\nsystem\\\\n.\")')",
    "torch.load in hydra": (
        "import torch; torch.save({'a': torch.nn.Linear(1, 1)}, MODEL + '/w.pt');"
        "in_hydra('kernels/x.py', 'import torch; torch.load(MODEL + \"/w.pt\", weights_only=False)')"
    ),
    "marshal in hydra": "in_hydra('store/x.py', 'import marshal; marshal.loads(b\"N\")')",
    "a program by store": "in_hydra('store/x.py', 'import subprocess; subprocess.run([\"true\"])')",
    "a program by kernels": "in_hydra('kernels/x.py', 'import os; os.system(\"true\")')",
    "a program by http": "in_hydra('http/x.py', 'import os; os.posix_spawn(\"/bin/true\", [\"true\"], {})')",
    "hydra by http, but open to its folder": "in_hydra('http/x.py', 'import subprocess, sys;"
    'subprocess.run([sys.executable, "-m", "hydra", "--version"])\')',
    "python by http, but not hydra": "in_hydra('http/x.py', 'import subprocess, sys;"
    'subprocess.run([sys.executable, "-m", "this"])\')',
}
HARMLESS = {
    "an attrs class in hydra": "in_hydra('store/x.py', 'import attrs\\n@attrs.define\\nclass X:\\n    x: int\\nX(1)')",
    "an import in hydra": "in_hydra('store/x.py', 'import hydra.store.models.library, tokenizers, jinja2')",
    "a template in hydra": "in_hydra('http/x.py', 'import jinja2; jinja2.Template(\"{{ 1 }}\").render()')",
    "hydra by http": "in_hydra('http/x.py', 'import subprocess, sys;"
    'subprocess.run([sys.executable, "-P", "-m", "hydra", "--version"], check=True)\')',
    "a program by the front door": "in_hydra('up.py', 'import subprocess; subprocess.run([\"true\"])')",
    "a traceback through an extension": 'in_hydra("protocol/x.py", \'compile(b"_getframe()", "x.pyx", "eval")\')',
    "a pickle of somebody else's": "import pickle; pickle.loads(b'cos\\ngetcwd\\n.')",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The demo model, and beside it whatever a careless loader might run."""
    made = ensure_demo_model(tmp_path_factory.mktemp("bait"))
    bite = f"import pathlib; pathlib.Path({str(made / BITTEN)!r}).write_text('x')\n"
    (made / "below").mkdir()
    names = ("modeling.py", "configuration.py", "tokenization.py", "__init__.py", "sitecustomize.py", "below/deeper.py")
    for name in (*names, "attrs.py", "tokenizers.py", "json.py", "setup.py", "conftest.py"):
        (made / name).write_text(bite)
    (made / "model.pth").write_text(bite)
    (made / "training_args.bin").write_bytes(b"cos\nsystem\n(S'touch " + os.fsencode(made / BITTEN) + b"'\ntR.")
    maps = {
        "AutoConfig": "configuration.Config",
        "AutoModelForCausalLM": "modeling.Model",
        "AutoTokenizer": ["t.T", None],
    }
    for file in ("config.json", "tokenizer_config.json"):
        said = json.loads((made / file).read_text())
        (made / file).write_text(json.dumps(said | {"auto_map": maps, "trust_remote_code": True}))
    return made


def child(source: str, *args: str, log: Path, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    env = os.environ | {hydra_audit.LOG: str(log)}
    return subprocess.run(
        [sys.executable, "-c", source, *args], env=env, cwd=cwd, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("source", PLANTS.values(), ids=PLANTS.keys())
def test_it_hears_what_is_planted(model, tmp_path, source):
    done = child(PRELUDE + source, str(model), str(ROOT / "hydra"), log=tmp_path / "log")
    assert done.returncode != 0 and "hydra_audit.Executed" in done.stderr, done.stderr
    assert (tmp_path / "log").read_text().startswith("pid ")
    assert not (model / BITTEN).exists()


@pytest.mark.parametrize("source", HARMLESS.values(), ids=HARMLESS.keys())
def test_it_is_silent_otherwise(model, tmp_path, source):
    done = child(PRELUDE + source, str(model), str(ROOT / "hydra"), log=tmp_path / "log")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "log").exists()


def test_it_listens_here_and_in_every_child(tmp_path):
    here: list[bool] = []
    sys.audit(hydra_audit.PING, here)
    assert here == [True]
    done = child(f"import sys; box = []; sys.audit({hydra_audit.PING!r}, box); print(box)", log=tmp_path / "log")
    assert done.stdout.strip() == "[True]", done.stderr


def test_a_swallowed_finding_fails_the_run_all_the_same(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "def test_it():\n"
        "    try:\n"
        f"        exec(compile('eval(\"1\")', {str(ROOT / 'hydra' / 'x.py')!r}, 'exec'))\n"
        "    except BaseException:\n"
        "        pass\n"
    )
    argv = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "tests.conftest"]
    done = subprocess.run([*argv, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "1 passed" in done.stdout, done.stdout + done.stderr
    assert "executed from a model directory" in done.stdout and "hydra/x.py called" in done.stdout


LOADS = """
import os, sys
os.chdir(sys.argv[1])
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from hydra.text.tokenizer import ChatInput
from hydra.text.trial import load_tried
from hydra.kernels.step.runner import Runner
from hydra.protocol.ids import Epoch, RouteId
from hydra.protocol.messages.plans import LoadSlice
from hydra.store.models.library import LocalLibrary
library = LocalLibrary()
found = library.describe(sys.argv[1])
order = LoadSlice(
    route=RouteId(1), epoch=Epoch(1, 1), spec=found.spec, dtype="float32", first_layer=0, end_layer=found.spec.n_layers,
    tensors=library.slice_ranges(found, 0, found.spec.n_layers), sources=found.sources, block_size=4,
    kv_memory_bytes=1 << 20,
)
runner = Runner("cpu")
runner.load(order, lambda done, total: None)
runner.activate(RouteId(1), 4)
words = load_tried(Path(sys.argv[1]))
assert len(words.encode_chat(ChatInput(messages=[{"role": "user", "content": "hi"}])))
print("loaded")
"""


def test_a_directory_full_of_bait_is_loaded_without_a_bite(model, tmp_path):
    """Even from within the directory, where careless imports would find the bait first."""
    script = tmp_path / "loads.py"
    script.write_text(LOADS)
    env = os.environ | {hydra_audit.LOG: str(tmp_path / "log")}
    argv = [sys.executable, str(script), str(model), str(ROOT)]
    done = subprocess.run(argv, env=env, cwd=model, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "loaded", done.stderr
    assert not (tmp_path / "log").exists() and not (model / BITTEN).exists()
