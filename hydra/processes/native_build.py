"""The sources in C, compiled once by this machine's own compiler and kept in the user's cache directory.

A library is named for its sources, the compiler and the processor, and ends with a digest of itself: one that is
damaged, or was made by other sources or for another processor, is compiled anew. It appears whole or not at all, so
that any number of processes may do this at once. A compiler has a deadline; where there is none, or it fails, that is
said once in the log, and torch's operators do the work. Nothing but the sources that lie in this package is compiled.
"""

import hashlib
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import attrs
import structlog

from hydra.kernels import native
from hydra.kernels.native.library import Find, NativeLibrary

COMPILE_S = 90.0  # all attempts together; an idle machine takes about 7
SOURCES = Path(native.__file__).parent
FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-pthread")
OWN_PROCESSOR = (("-march=native",), ("-mcpu=native",), ())  # what a compiler may call it; the last is any processor
LIBRARIES_MAX = 4  # that are kept: of other sources, compilers and processors of one home
_DIGEST_BYTES = 32

log = structlog.get_logger()


class NoNativeLibraryError(Exception):
    """Why there is none."""


def native_directory(environ: Mapping[str, str]) -> Path:
    """Where the libraries of this user are."""
    base = environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(base) / "hydra" / "native"


def begin_native_build(environ: Mapping[str, str], directory: Path | None = None) -> Find:
    """Opens the library if it is there; else begins to compile it, and returns at once. What is returned waits."""
    build = NativeBuild(directory or native_directory(environ), environ)
    result: list[NativeLibrary | None] = []

    def run() -> None:
        try:
            result.append(build.library())
        except (NoNativeLibraryError, OSError) as error:
            log.warning("no products of our own: torch's operators are used, and take longer", reason=str(error))

    if build.is_there():
        run()
        return lambda: result[0] if result else None
    thread = threading.Thread(target=run, name="native-build", daemon=True)
    thread.start()

    def wait() -> NativeLibrary | None:
        thread.join(COMPILE_S + 10)
        return result[0] if result else None

    return wait


@attrs.frozen
class NativeBuild:
    """One library in one directory."""

    directory: Path
    environ: Mapping[str, str]

    def is_there(self) -> bool:
        """Without a look at what is in it."""
        try:
            return self._path(self._compiler()).exists()
        except NoNativeLibraryError:
            return True  # there is nothing to wait for

    def library(self) -> NativeLibrary:
        """Raises NoNativeLibraryError or OSError where there is none to be had."""
        compiler = self._compiler()
        path = self._path(compiler)
        self._make_directory()
        if not _is_whole(path):
            self._compile(compiler, path)
        try:
            return NativeLibrary.open(path)
        except OSError as error:
            raise NoNativeLibraryError(f"{path} cannot be loaded ({error})") from error

    def _compiler(self) -> list[str]:
        named = shlex.split(self.environ.get("CC", ""))
        for words in [named] if named else [["cc"], ["gcc"], ["clang"]]:
            place = shutil.which(words[0], path=self.environ.get("PATH"))
            if place is not None:
                return [place, *words[1:]]
        raise NoNativeLibraryError("there is no C compiler ($CC, cc, gcc, clang)")

    def _path(self, compiler: Sequence[str]) -> Path:
        digest = hashlib.sha256()
        for source in _sources():
            digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
        program = Path(compiler[0]).resolve().stat()
        facts = (*compiler, program.st_size, program.st_mtime_ns, FLAGS, OWN_PROCESSOR, processor_facts())
        digest.update(repr(facts).encode())
        return self.directory / f"products-{digest.hexdigest()[:24]}.so"

    def _make_directory(self) -> None:
        """Of this user alone: what lies in it is run."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = self.directory.stat()
        if facts.st_uid != os.getuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise NoNativeLibraryError(f"{self.directory} belongs to others as well; remove it")

    def _compile(self, compiler: Sequence[str], path: Path) -> None:
        until_s = time.monotonic() + COMPILE_S
        with tempfile.TemporaryDirectory(prefix="compile-", dir=self.directory) as place:
            target, report = Path(place) / "products.so", ""
            for processor in OWN_PROCESSOR:
                argv = [*compiler, *FLAGS, *processor, *map(str, sorted(SOURCES.glob("*.c"))), "-lm", "-o", str(target)]
                ended, report = _run(argv, place, self.environ, until_s - time.monotonic())
                if ended == 0 and target.exists():
                    break
            else:
                raise NoNativeLibraryError(f"{compiler[0]} failed: {report[-500:]}")
            content = target.read_bytes()
            target.write_bytes(content + hashlib.sha256(content).digest())
            target.chmod(0o700)
            target.replace(path)
        self._forget_old()
        log.info("compiled the products of few rows with this machine's compiler", path=str(path))

    def _forget_old(self) -> None:
        """Those of former versions; one that a process has open stays with it."""
        with suppress(OSError):  # another process may be at it too
            newest_first = sorted(self.directory.glob("products-*.so"), key=lambda path: -path.stat().st_mtime_ns)
            for old in newest_first[LIBRARIES_MAX:]:
                old.unlink()


def _sources() -> list[Path]:
    return sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.h")])


def _is_whole(path: Path) -> bool:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    return hashlib.sha256(content[:-_DIGEST_BYTES]).digest() == content[-_DIGEST_BYTES:]


def processor_facts() -> str:
    """What a library for one processor and one for another differ in."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "flags", "Features", "CPU part")
    facts = dict.fromkeys(line for line in lines if line.startswith(wanted))
    return "\n".join([platform.system(), platform.machine(), platform.processor(), *facts])


def _run(argv: Sequence[str], place: str, environ: Mapping[str, str], timeout_s: float) -> tuple[int, str]:
    """(exit status, what it wrote). A compiler is several processes: at the deadline they all end."""
    with subprocess.Popen(
        argv,
        cwd=place,
        env={**environ, "TMPDIR": place},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            report, _ = process.communicate(timeout=max(0.0, timeout_s))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise NoNativeLibraryError(f"{argv[0]} was not done within {COMPILE_S:.0f} s") from None
    return process.returncode, report
