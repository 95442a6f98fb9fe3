"""The scenario scripts on real processes, as a user runs them; and one that must end badly."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from scenarios.expectations import all_are_whole, eight_in_the_middle
from scenarios.processes import ROOT
from scenarios.story import Story, tell
from scenarios.theatre import Cast, Theatre

# The other tests of this room show the like of them.
NAMES = ("cut_then_heal", "kill_coordinator", "kill_worker", "pause_worker", "poison_request", "reader_walks_away")


@pytest.mark.timeout(300)
@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_a_story_ends_well_on_real_processes(name: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", f"scenarios.{name}", "--real"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    told = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False)
    print(told.stdout, told.stderr)
    assert told.returncode == 0
    assert " injected " in told.stdout and "verdict: passed" in told.stdout
    assert not list(tmp_path.iterdir()), "its scratch directory is left behind"


def test_a_story_can_end_badly_on_real_processes(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody survives the frontend that holds its connection. That is told, and no process is left."""
    family: list[psutil.Process] = []

    async def plot(theatre: Theatre) -> None:
        readers = await eight_in_the_middle(theatre)
        family.extend(psutil.Process().children(recursive=True))
        next(child for child in family if "_frontend" in child.cmdline()).kill()
        await all_are_whole(theatre, readers)

    story = Story(name="too much", about="SIGKILL of the frontend", cast=Cast(workers=1), plot=plot)
    assert tell(story, ["--real"]) == 1
    told = capsys.readouterr().out
    assert "verdict: FAILED: reader 1 ended with the error connection lost" in told, told
    assert "the last words of the processes:" in told
    assert len(family) >= 4 and not psutil.wait_procs(family, timeout=10)[1]
