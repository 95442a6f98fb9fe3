"""Hundreds of broken model directories, tried by one process: each is refused in time and leaves nothing behind."""

import json
import select
import shutil
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from hydra.store.models.demo_model import ensure_demo_model
from tests.unit.corrupted import all_cases
from tests.unit.store.conftest import saved  # noqa: F401 - the fixture

ROOT = Path(__file__).parents[2]
REFUSED_WITHIN_S = 2.0  # by the clock of the wall, in the best of TRIES; of CPU time in each of them
TRIES = 3  # of one that was late by the clock alone: the machine may have been busy with something else
PATIENCE_S = 30.0
START_S = 60.0
LEFT_BYTES_MAX = 16 << 20
VARIANTS_MIN = 200
PARTS = 3  # the first of them, all over the list, is tried in every run

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is counted in /proc")


@attrs.define
class Trier:
    """The process that tries them; a new one when it has died or was killed for being late."""

    good: Path
    process: "subprocess.Popen[str] | None" = None
    base_bytes: int = 0

    def attempt(self, directory: Path) -> dict:
        """What it said, or what became of it under the key "died"."""
        if self.process is None:
            argv = [sys.executable, "-m", "tests.unit.try_child", str(self.good)]
            self.process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
            )
            first = self._hear(START_S)
            assert first.get("code", "none") is None, first
            self.base_bytes = first["resident_bytes"]
        self.process.stdin.write(f"{directory}\n")
        self.process.stdin.flush()
        return self._hear(PATIENCE_S)

    def _hear(self, within_s: float) -> dict:
        ready, _, _ = select.select([self.process.stdout], [], [], within_s)
        if ready and (line := self.process.stdout.readline()):
            return json.loads(line)
        return {"died": self.end() or f"no answer within {within_s} s"}

    def end(self) -> str:
        """Its last words."""
        process, self.process = self.process, None
        process.kill()
        _, said = process.communicate()
        return " | ".join(said.splitlines()[-2:])


@pytest.fixture(scope="module")
def bases(saved, tmp_path_factory) -> Path:  # noqa: F811
    """The saved models, with the demo model's words."""
    root = tmp_path_factory.mktemp("bases")
    demo = ensure_demo_model(tmp_path_factory.mktemp("demo"))
    for base in saved.iterdir():
        shutil.copytree(base, root / base.name)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(demo / name, root / base.name)
    return root


def judged(case, directory: Path, trier: Trier) -> str | None:
    """What is wrong with what came of it. Only lateness by the clock gets another try."""
    for _ in range(TRIES):
        said = trier.attempt(directory)
        if (found := complaint(case, said, trier.base_bytes)) is not None:
            return found
        if said["wall_s"] <= REFUSED_WITHIN_S:
            return None
    return f"took {said['wall_s']:.1f} s in the last of {TRIES} tries, {said['cpu_s']:.1f} s of them computing"


def complaint(case, said: dict, base_bytes: int) -> str | None:
    """What is wrong with an answer; None when it is as it should be."""
    if "died" in said:
        return f"died: {said['died']}"
    if said["code"] != case.code:
        return f"ended with {said['code']} at {said['step']}, not with {case.code}: {said['message']}"
    if case.names not in said["message"]:
        return f"does not name {case.names!r}: {said['message']}"
    if not 10 < len(said["message"].encode()) < 1000:
        return f"is not said clearly: {said['message']!r}"
    if said["cpu_s"] > REFUSED_WITHIN_S:
        return f"computed for {said['cpu_s']:.1f} s"
    if said["resident_bytes"] - base_bytes > LEFT_BYTES_MAX:
        return f"left {(said['resident_bytes'] - base_bytes) >> 20} MiB behind"
    return None


@pytest.mark.timeout(500)  # on a busy machine; every single attempt has its own deadline
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.long) for part in range(1, PARTS))])
def test_every_broken_directory_is_refused_in_time_and_leaves_nothing(part, bases, tmp_path):
    cases = all_cases()
    assert len({case.label for case in cases}) == len(cases) >= VARIANTS_MIN
    cases = cases[part::PARTS]
    trier, wrong = Trier(bases / "single"), {}
    for number, case in enumerate(cases):
        path = tmp_path / str(number) / case.base
        shutil.copytree(bases / case.base, path)
        case.broken(path)
        if (found := judged(case, path, trier)) is not None:
            wrong[case.label] = found
        shutil.rmtree(path.parent)
    if trier.process is not None:
        trier.end()
    assert not wrong, "\n".join(f"{label}: {found}" for label, found in wrong.items())
