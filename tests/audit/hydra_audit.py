"""An ear on the interpreter itself: nothing that lies in a model directory is executed while the tests run.

`install` adds an audit hook to this process. What it forbids it raises on the spot, and writes down as well, so that a
swallowed exception still fails the run. It stands alone: children of the test run import it by `sitecustomize`, before
anything else; so it uses os.path, which is there already.

Forbidden are
- code whose file lies in a model directory: executed, compiled, imported, or loaded as a library;
- `exec` and `compile` called by Hydra's own code, and `marshal.loads` by anybody on its behalf but the import system;
- a class or function looked up by a pickle on Hydra's behalf;
- another program started by the rooms that read models (store, kernels, text, http), unless it is Hydra itself, and
  deaf to the folder it stands in (python -P), or Triton's, whose compiler runs others over kernels of our own.
"""

import os
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import CodeType, FrameType

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
STDLIB = os.path.dirname(os.__file__)
HYDRA = os.path.join(ROOT, "hydra") + os.sep
READERS = tuple(os.path.join(HYDRA, room) + os.sep for room in ("store", "kernels", "text", "http"))
TRUSTED = tuple({os.path.realpath(path) + os.sep for path in (ROOT, sys.prefix, sys.base_prefix, STDLIB)})
TRITON = os.path.join(os.sep, "site-packages", "triton", "")
MARKS = ("config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json")
LOG = "HYDRA_TEST_AUDIT_LOG"
# What an extension that Cython built for the stable ABI compiles to get a frame for a traceback.
CYTHON_FRAME = b"_getframe()"
PING = "hydra_audit.ping"  # sys.audit(PING, []) puts True into the list when somebody listens


class Executed(BaseException):
    """Not an Exception, so that few can swallow it."""


def install() -> None:
    sys.addaudithook(_heard)


def _heard(event: str, args: tuple[object, ...]) -> None:
    check = _CHECKS.get(event)
    if check is not None:
        check(*args)


def _forbid(what: str) -> None:
    line = f"pid {os.getpid()}: {what}"
    path = os.environ.get(LOG)
    if path:
        with open(path, "a", encoding="utf-8") as log:
            log.write(line + "\n")
    raise Executed(line)


def _frames() -> Iterator[FrameType]:
    """From whoever caused the event, outwards."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename != __file__:
            yield frame
        frame = frame.f_back


def _caller() -> str:
    return next((frame.f_code.co_filename for frame in _frames()), "")


def _on_behalf_of(places: tuple[str, ...]) -> str | None:
    return next((frame.f_code.co_filename for frame in _frames() if frame.f_code.co_filename.startswith(places)), None)


def in_model_directory(path: object) -> bool:
    """Whether a file lies in (or up to three folders below) a folder that looks like a model."""
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if not isinstance(path, str) or not path or path.startswith("<"):
        return False
    folder = os.path.dirname(os.path.abspath(path))
    return not _is_trusted(folder) and _looks_like_a_model(folder)


@lru_cache(maxsize=65536)
def _is_trusted(folder: str) -> bool:
    return (os.path.realpath(folder) + os.sep).startswith(TRUSTED)


def _looks_like_a_model(folder: str) -> bool:
    for _ in range(4):
        if any(os.path.exists(os.path.join(folder, mark)) for mark in MARKS):
            return True
        folder = os.path.dirname(folder)
    return False


def _on_exec(code: object) -> None:
    if not isinstance(code, CodeType):
        return
    if in_model_directory(code.co_filename):
        _forbid(f"{code.co_filename} of a model directory was executed")
    if _caller().startswith(HYDRA):
        _forbid(f"{_caller()} called exec or eval")


def _on_compile(source: object, filename: object) -> None:
    if in_model_directory(filename):
        _forbid(f"{filename!r} of a model directory was compiled")
    if source != CYTHON_FRAME and _caller().startswith(HYDRA):
        _forbid(f"{_caller()} called compile")


def _on_import(module: object, filename: object, path: object, *_: object) -> None:
    if in_model_directory(filename):
        _forbid(f"{module!r} was imported from {filename!r} in a model directory")
    for entry in path if isinstance(path, list) else ():
        if isinstance(entry, str) and entry and in_model_directory(os.path.join(entry, "x")):
            _forbid(f"{module!r} was looked for in the model directory {entry!r}")


def _on_library(name: object) -> None:
    if in_model_directory(name):
        _forbid(f"the library {name!r} of a model directory was opened")


def _on_pickle(module: object, name: object) -> None:
    if (who := _on_behalf_of((HYDRA,))) is not None:
        _forbid(f"a pickle looked up {module}.{name} for {who}")


def _on_marshal(*_: object) -> None:
    caller = _caller()
    if not caller.startswith("<frozen importlib") and (who := _on_behalf_of((HYDRA,))) is not None:
        _forbid(f"marshal.loads was called for {who}")


def _on_program(program: object = None, argv: object = None, *_: object) -> None:
    who = _on_behalf_of(READERS)
    if who is None or any(TRITON in frame.f_code.co_filename for frame in _frames()):
        return
    words = list(argv) if isinstance(argv, list | tuple) else []
    if words[:3] == [sys.executable, "-P", "-m"] and str(words[3]).split(".")[0] == "hydra":
        return
    _forbid(f"{program!r} {argv!r} was started for {who}")


def _on_ping(box: object) -> None:
    if isinstance(box, list):
        box.append(True)


_CHECKS: dict[str, Callable[..., None]] = {
    "exec": _on_exec,
    "compile": _on_compile,
    "import": _on_import,
    "ctypes.dlopen": _on_library,
    "pickle.find_class": _on_pickle,
    "marshal.loads": _on_marshal,
    "subprocess.Popen": _on_program,
    "os.system": _on_program,
    "os.exec": _on_program,
    "os.posix_spawn": _on_program,
    "os.spawn": lambda mode, program, argv, env: _on_program(program, argv),
    "pty.spawn": lambda argv: _on_program(None, argv),
    PING: _on_ping,
}
