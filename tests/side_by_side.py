"""The suite as several runs of pytest at once: `python -m tests.side_by_side [pytest's arguments]`.

Tests that start real processes mostly wait: for imports, leases and signals. Beside them, at the lowest priority, run
all others, which mostly compute, two pieces of them at a time, on what the first leave of the processors. The first are
therefore hardly disturbed, and all together take about as long as they do. Ends with the worst of the exit codes.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
# With those that hold a bound of time, which whoever runs at the lowest priority could not keep.
REAL = (
    "tests/e2e",
    "tests/wire",
    "tests/clients",
    "tests/real",
    "tests/gpu",
    "tests/unit/test_corrupted_models.py",
    "tests/unit/store/test_killed_download.py",
    "tests/unit/test_audit.py",
    "tests/unit/cli/test_front_door.py",
    "tests/unit/http/test_tokenizer_trial.py",
)
# The others in pieces of some minutes each, the longest first; whatever is in none of them is the last piece.
COMPUTING = (("tests/unit/kernels",), ("tests/sim",), ("tests/unit/store", "tests/unit/text"))
COMPUTING_AT_ONCE = 2
NOTHING_COLLECTED = 5


def computing_runs() -> list[list[str]]:
    """What pytest is told of each piece."""
    apart = [f"--ignore={path}" for path in REAL]
    pieces = [[*apart, *paths] for paths in COMPUTING]
    return [*pieces, [*apart, *(f"--ignore={path}" for paths in COMPUTING for path in paths), "tests"]]


def compute(pytest: list[str], arguments: list[str]) -> tuple[int, str]:
    """Its exit code and its output."""
    done = subprocess.run(
        [*pytest, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        preexec_fn=lambda: os.nice(19),
    )
    return done.returncode, f"{' '.join(one for one in arguments if not one.startswith('-'))}\n{done.stdout}"


def main(arguments: list[str]) -> int:
    began_s = time.monotonic()
    pytest = [sys.executable, "-m", "pytest", *arguments]
    with ThreadPoolExecutor(COMPUTING_AT_ONCE) as pool:
        computing = [pool.submit(compute, pytest, run) for run in computing_runs()]
        codes = [subprocess.run([*pytest, *REAL], cwd=ROOT, check=False).returncode]
        for piece in computing:
            code, output = piece.result()
            codes.append(code)
            print(output)
    print(f"all together took {time.monotonic() - began_s:.0f} s")
    return max((0 if code == NOTHING_COLLECTED else code for code in codes), key=abs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
