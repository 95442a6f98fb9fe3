"""How much of each room the fast tests run, against floors that only rise: `make coverage`, RAISE=1 to raise them.

Measured are the tests that need no process of their own and no network, with few seeds: what a mistake in a room has to
get past first. A room below its floor has new lines that none of them runs. Floors are whole percents of lines, in
coverage_floors.json; raising takes what was measured less one percent, for what depends on the hour, and lowers none.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.side_by_side import REAL

ROOT = Path(__file__).parents[1]
FLOORS = Path(__file__).with_name("coverage_floors.json")
SPARE_PERCENT = 1
SOME_FAILED = 1  # pytest's exit code
FRONT = "front"  # the files that are in no room


def room_of(file: str) -> str:
    """The first folder under hydra."""
    parts = Path(file).parts
    return parts[1] if len(parts) > 2 else FRONT


def percents(files: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """By room, from coverage's summaries by file."""
    lines: dict[str, list[int]] = {}
    for file, summary in files.items():
        lines.setdefault(room_of(file), []).append(summary["num_statements"])
    run: dict[str, int] = dict.fromkeys(lines, 0)
    for file, summary in files.items():
        run[room_of(file)] += summary["covered_lines"]
    return {room: 100 * run[room] / max(1, sum(counts)) for room, counts in sorted(lines.items())}


def faults(floors: Mapping[str, int], measured: Mapping[str, float]) -> list[str]:
    """Rooms below their floor, rooms without one, and floors without a room."""
    low = [
        f"{room}: {percent:.1f} % of its lines are run, at least {floors[room]} % were"
        for room, percent in measured.items()
        if room in floors and percent < floors[room]
    ]
    new = [f"{room}: it has no floor; RAISE=1 gives it one" for room in measured if room not in floors]
    gone = [f"{room}: it has a floor, and is not there" for room in floors if room not in measured]
    return [*low, *new, *gone]


def raised(floors: Mapping[str, int], measured: Mapping[str, float]) -> dict[str, int]:
    """Floors as high as what was measured, and none lower than it was; rooms that are gone take theirs with them."""
    return {room: max(floors.get(room, 0), int(percent) - SPARE_PERCENT) for room, percent in measured.items()}


def measure(paths: list[str]) -> dict[str, float]:
    """Runs the tests. One that fails is for `make test` to judge: those with bounds of time may, under a tracer. Raises
    CalledProcessError when they could not be run at all."""
    with tempfile.TemporaryDirectory() as folder:
        env = {"HYDRA_SEEDS": "5", **os.environ, "COVERAGE_FILE": f"{folder}/data"}
        coverage, report = [sys.executable, "-m", "coverage"], f"{folder}/report.json"
        marks = "not gpu and not long and not real and not clients"
        tests = ["-m", "pytest", "-q", "-m", marks, *(f"--ignore={path}" for path in REAL), *paths]
        ran = subprocess.run([*coverage, "run", "--source=hydra", *tests], cwd=ROOT, env=env, check=False)
        if ran.returncode not in (0, SOME_FAILED):
            ran.check_returncode()
        subprocess.run([*coverage, "json", "-q", "-o", report], cwd=ROOT, env=env, check=True)
        files = json.loads(Path(report).read_text())["files"]
    return percents({file: found["summary"] for file, found in files.items()})


def main(arguments: list[str]) -> int:
    floors = json.loads(FLOORS.read_text())
    measured = measure([path for path in arguments if path != "--raise"] or ["tests/unit", "tests/sim"])
    for room, percent in measured.items():
        print(f"{room:12} {percent:5.1f} %  floor {floors.get(room, '-')}")
    if "--raise" in arguments:
        FLOORS.write_text(json.dumps(raised(floors, measured), indent=2) + "\n")
        return 0
    found = faults(floors, measured)
    print(*found, sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
