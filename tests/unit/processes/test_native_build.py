"""The library of products: compiled once, never half, again where it is damaged, and not at all without a compiler."""

import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import structlog

from hydra.processes import native_build
from hydra.processes.native_build import NativeBuild, NoNativeLibraryError, begin_native_build, native_directory

ROOT = Path(__file__).parents[3]
COMPILER = next((place for name in ("cc", "gcc", "clang") if (place := shutil.which(name))), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="this machine has no C compiler")


def compiler(folder: Path, script: str) -> dict[str, str]:
    """An environment whose compiler is a script; it counts its runs in a file."""
    program = folder / "own-cc"
    program.write_text(f"#!/bin/sh\necho run >> {folder}/runs\n{textwrap.dedent(script)}")
    program.chmod(0o755)
    return {**os.environ, "CC": str(program)}


def quick(folder: Path) -> dict[str, str]:
    """A compiler that makes a small library with our names."""
    source = folder / "small.c"
    names = ("product", "decode", "read", "rms_norm", "rotate", "gate", "attend", "run")
    functions = "".join(f"int hydra_{name}(){{return 0;}} " for name in names)
    source.write_text(functions + 'const char *hydra_lanes(){return "small";}')
    return compiler(folder, f'for last; do :; done\nexec {COMPILER} -shared -fPIC {source} -o "$last"\n')


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text().split()) if (folder / "runs").exists() else 0


@needs_compiler
def test_it_is_compiled_once_and_anew_where_it_is_damaged(tmp_path):
    environ, place = quick(tmp_path), tmp_path / "cache"
    build = NativeBuild(place, environ)
    assert not build.is_there()
    assert build.library().lanes == "small" and build.is_there() and runs(tmp_path) == 1
    assert NativeBuild(place, environ).library().lanes == "small" and runs(tmp_path) == 1
    (library,) = place.glob("*.so")
    assert place.stat().st_mode & 0o777 == 0o700
    for damaged in (b"", library.read_bytes()[:100], library.read_bytes()[:-1], b"x" + library.read_bytes()[1:]):
        library.unlink()  # in place it would change under those who have it open
        library.write_bytes(damaged)
        before = runs(tmp_path)
        assert build.library().lanes == "small" and runs(tmp_path) == before + 1
    assert [path.name for path in place.iterdir()] == [library.name]


@needs_compiler
def test_the_latest_few_are_kept(tmp_path, monkeypatch):
    environ, place = quick(tmp_path), tmp_path / "cache"
    for version in range(native_build.LIBRARIES_MAX + 2):
        monkeypatch.setattr(native_build, "FLAGS", (f"-DVERSION={version}",))
        assert NativeBuild(place, environ).library().lanes == "small"
        (latest,) = (path for path in place.glob("*.so") if path == NativeBuild(place, environ)._path([environ["CC"]]))
        os.utime(latest, ns=(version, version))
    assert len(list(place.glob("*.so"))) == native_build.LIBRARIES_MAX and latest.exists()


@needs_compiler
def test_another_compiler_makes_another_library(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        NativeBuild(tmp_path / "cache", quick(tmp_path / name)).library()
    assert len(list((tmp_path / "cache").glob("*.so"))) == 2


@needs_compiler
def test_two_processes_at_once_both_get_a_whole_one(tmp_path):
    environ = quick(tmp_path)
    source = (
        "import sys, os; from pathlib import Path; from hydra.processes.native_build import begin_native_build;"
        "print(begin_native_build(os.environ, Path(sys.argv[1]))().lanes)"
    )
    argv = [sys.executable, "-c", source, str(tmp_path / "cache")]
    both = [subprocess.Popen(argv, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].split()[-1] for process in both] == ["small", "small"]
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("named", [{"CC": "no-such-compiler"}, {"PATH": "/nowhere", "CC": ""}])
def test_without_a_compiler_there_is_none_and_it_is_said_once(tmp_path, named):
    with structlog.testing.capture_logs() as lines:
        find = begin_native_build({**os.environ, **named}, tmp_path / "cache")
        assert find() is None and find() is None
    (line,) = lines
    assert "torch's operators" in line["event"] and "no C compiler" in line["reason"]


def test_a_compiler_that_fails_is_named_with_what_it_said(tmp_path):
    environ = compiler(tmp_path, "echo 'no room left'\nexit 3\n")
    with pytest.raises(NoNativeLibraryError, match=r"own-cc failed: no room left"):
        NativeBuild(tmp_path / "cache", environ).library()
    assert runs(tmp_path) == len(native_build.OWN_PROCESSOR)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_compiler_that_never_ends_is_ended_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(native_build, "COMPILE_S", 0.2)
    environ = compiler(tmp_path, f"sleep 60 &\necho $! > {tmp_path}/started\nwait\n")
    began_s = time.monotonic()
    with pytest.raises(NoNativeLibraryError, match="was not done within"):
        NativeBuild(tmp_path / "cache", environ).library()
    assert time.monotonic() - began_s < 30
    started = Path("/proc") / (tmp_path / "started").read_text().strip() / "stat"
    assert not started.exists() or started.read_text().split()[2] == "Z"


def test_what_is_no_library_is_not_used(tmp_path):
    environ = compiler(tmp_path, 'for last; do :; done\necho text > "$last"\n')
    with structlog.testing.capture_logs() as lines:
        assert begin_native_build(environ, tmp_path / "cache")() is None
    assert "cannot be loaded" in lines[-1]["reason"]


def test_a_directory_that_others_can_write_to_is_not_used(tmp_path):
    place = tmp_path / "cache"
    place.mkdir(mode=0o700)
    place.chmod(0o777)
    with pytest.raises(NoNativeLibraryError, match="belongs to others"):
        NativeBuild(place, {**os.environ, "CC": "sh"}).library()


def test_nobody_waits_for_a_compiler_but_who_needs_the_library(tmp_path):
    """The compiler waits for a file that is only made after `begin_native_build` returned."""
    go = tmp_path / "go"
    environ = compiler(tmp_path, f"while [ ! -e {go} ]; do sleep 0.01; done\nexit 1\n")
    find = begin_native_build(environ, tmp_path / "cache")
    go.touch()
    assert find() is None


def test_it_lies_in_the_cache_of_the_user():
    assert native_directory({"XDG_CACHE_HOME": "/somewhere"}) == Path("/somewhere/hydra/native")
    assert native_directory({}) == Path("~/.cache/hydra/native").expanduser()
