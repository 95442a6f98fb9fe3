"""The suite as two runs of pytest at once: `python -m tests.side_by_side [pytest's arguments]`.

Tests that start real processes mostly wait: for imports, leases and signals. Beside them, at the lowest priority, run
all others, which mostly compute, on what the first leave of the processors. The first are therefore hardly disturbed,
and both together take about as long as the longer of the two. Ends with the worse of the two exit codes.
"""

import os
import subprocess
import sys
import tempfile
import time
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
NOTHING_COLLECTED = 5


def main(arguments: list[str]) -> int:
    began_s = time.monotonic()
    pytest = [sys.executable, "-m", "pytest", *arguments]
    with tempfile.TemporaryFile("w+") as computed_output:
        computing = subprocess.Popen(
            [*pytest, *(f"--ignore={path}" for path in REAL)],
            cwd=ROOT,
            stdout=computed_output,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.nice(19),
        )
        try:
            real = subprocess.run([*pytest, *REAL], cwd=ROOT, check=False).returncode
            computed = computing.wait()
        finally:
            computing.kill()
            computing.wait()
        computed_output.seek(0)
        print(computed_output.read())
    print(f"both together took {time.monotonic() - began_s:.0f} s")
    codes = [0 if code == NOTHING_COLLECTED else code for code in (real, computed)]
    return max(codes, key=abs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
