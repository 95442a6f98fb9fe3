"""What the tools are set to: types are strict everywhere, and the floors of coverage are those of rooms that exist."""

import json
import tomllib

import pytest

from tests.coverage_floors import FLOORS, FRONT, faults, percents, raised, room_of
from tests.unit.house.sources import HOUSE, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOOSENED = {  # what Triton compiles has types of its own
    "hydra.kernels.attention.paged_decode",
    "hydra.kernels.weights.encoded.cuda.tile_decoders",
    "hydra.kernels.weights.encoded.cuda.tile_product",
}


def loosened(mypy: dict) -> set[str]:
    """Our own modules for which some check is off, or all of them if the whole is not strict."""
    if mypy.get("strict") is not True or mypy.get("packages") != ["hydra", "scenarios"]:
        return {"hydra", "scenarios"}
    modules = [(rule["module"], rule) for rule in mypy.get("overrides", [])]
    pairs = [(name, rule) for names, rule in modules for name in ([names] if isinstance(names, str) else names)]
    return {name for name, _ in pairs if name.split(".")[0] in ("hydra", "scenarios")}


def test_types_are_strict_in_the_house_and_in_the_scenarios() -> None:
    assert loosened(PROJECT["tool"]["mypy"]) == LOOSENED


@pytest.mark.parametrize(
    ("mypy", "found"),
    [
        ({"strict": True, "packages": ["hydra", "scenarios"]}, set()),
        ({"strict": False, "packages": ["hydra", "scenarios"]}, {"hydra", "scenarios"}),
        ({"strict": True, "packages": ["hydra"]}, {"hydra", "scenarios"}),
        (
            {"strict": True, "packages": ["hydra", "scenarios"], "overrides": [{"module": ["zmq.*", "hydra.http.*"]}]},
            {"hydra.http.*"},
        ),
    ],
)
def test_the_rule_sees_types_that_are_not(mypy: dict, found: set[str]) -> None:
    assert loosened(mypy) == found


def test_every_room_has_a_floor() -> None:
    rooms = {folder.name for folder in HOUSE.iterdir() if (folder / "__init__.py").exists()}
    floors = json.loads(FLOORS.read_text())
    assert set(floors) == {*rooms, FRONT} and all(0 <= floor <= 100 for floor in floors.values())


def test_a_room_below_its_floor_is_seen_and_floors_only_rise() -> None:
    files = {
        "hydra/http/a.py": {"num_statements": 90, "covered_lines": 80},
        "hydra/http/b/c.py": {"num_statements": 10, "covered_lines": 0},
        "hydra/settings.py": {"num_statements": 4, "covered_lines": 3},
    }
    assert room_of("hydra/settings.py") == FRONT and percents(files) == {"front": 75.0, "http": 80.0}
    measured = {"http": 80.4, "log": 95.0}
    assert faults({"http": 80, "log": 95}, measured) == []
    (low,) = faults({"http": 81, "log": 95}, measured)
    assert low.startswith("http: 80.4 %")
    assert len(faults({"http": 80, "text": 1}, measured)) == 2
    assert raised({"http": 80, "log": 96, "text": 50}, measured) == {"http": 80, "log": 96}
    assert raised({"http": 70}, measured) == {"http": 79, "log": 94}
