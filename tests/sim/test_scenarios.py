"""The scenario scripts, simulated: each story ends well for some seeds, and is told to have failed when it does not."""

import importlib

import pytest

from tests.sim.test_planted_bugs import (
    commit_a_token_twice,
    ignore_who_leaves,
    never_ask_again,
    replay_from_the_wrong_position,
)

SEEDS = range(1, 6)
NAMES = ("kill_worker", "pause_worker", "kill_coordinator", "cut_then_heal", "poison_request", "reader_walks_away")


def tell(name, *argv):
    """The program's exit status."""
    scenario = importlib.import_module(f"scenarios.{name}")
    assert scenario.STORY.name == name
    return scenario.tell(scenario.STORY, argv)


@pytest.mark.parametrize("name", NAMES)
def test_a_story_ends_well(name, capsys):
    for seed in SEEDS:
        assert tell(name, "--seed", str(seed)) == 0, capsys.readouterr().out
        told = capsys.readouterr().out
        assert " injected " in told and " seen " in told and "verdict: passed" in told


def test_the_same_seed_tells_the_same_story(capsys):
    told = []
    for seed in ("1", "1", "2"):
        assert tell("kill_worker", "--seed", seed) == 0
        told.append(capsys.readouterr().out.splitlines()[1:])
    assert told[0] == told[1] != told[2]


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("kill_worker", replay_from_the_wrong_position),
        ("pause_worker", replay_from_the_wrong_position),
        ("kill_coordinator", never_ask_again),
        ("cut_then_heal", commit_a_token_twice),
        ("poison_request", replay_from_the_wrong_position),
        ("reader_walks_away", ignore_who_leaves),
    ],
)
def test_a_story_can_end_badly(name, plant, monkeypatch, capsys):
    plant(monkeypatch)
    assert tell(name) == 1
    told = capsys.readouterr().out
    assert "verdict: FAILED: " in told and "verdict: passed" not in told
    assert "everything that happened:" in told, "what the world saw is told as well"
