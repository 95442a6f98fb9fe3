"""What `up` serves where no model is named: out of a package, a cache or a Hub, or random weights; and what it says."""

import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import snapshot_download

from hydra.cli import built_in_model as built_in
from hydra.cli.built_in_model import MODEL_ID, PACKAGE, PACKAGE_VERSION, REPO, BuiltInChoice, BuiltInModel
from hydra.cli.main import cli
from hydra.cli.pull import pull_model
from hydra.cli.up import with_model
from hydra.complaint import Complaint
from hydra.protocol.settings.model import ModelSettings
from hydra.settings import load_settings
from hydra.store.hub.hub import HEADER_GUESS_BYTES
from hydra.store.models.demo_model import DEMO_NAME, ensure_demo_model
from tests.fake_hub import fake_hub
from tests.unit.store.test_packaged_model import install

ROOT = Path(__file__).parents[3]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A machine without the package, with empty caches, and a Hub that has the model (the random one, to be small)."""
    monkeypatch.setattr(built_in, "PACKAGE", "not-installed-here")
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with fake_hub() as hub:
        hub.add(REPO, ensure_demo_model(tmp_path / "published"))
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield World(tmp_path, hub)


class World:
    def __init__(self, tmp_path, hub):
        self.cache, self.hub = tmp_path / "cache", hub
        self.questions, self.lines = [], []

    def choose(self, answer=None, built_in="auto"):
        """`answer` to the question; None: nobody is there to be asked."""
        self.lines.clear()

        def ask(question):
            self.questions.append(question)
            return answer

        settings = ModelSettings(built_in=built_in, cache_dir=str(self.cache))
        return BuiltInChoice(settings, None if answer is None else ask, self.lines.append).choose()

    @property
    def random(self):
        return BuiltInModel(path=str(self.cache / DEMO_NAME))

    @property
    def of_the_hub(self):
        return BuiltInModel(path=f"{REPO}@{self.hub.commit(REPO)}", model_id=MODEL_ID)


def test_the_package_serves_and_nobody_is_asked(world, tmp_path, monkeypatch):
    monkeypatch.setattr(built_in, "PACKAGE", "some-model")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    folder = install(tmp_path / "site", ["SmolLM2.Q4_1.gguf"])
    assert world.choose(True) == BuiltInModel(path=str(folder / "SmolLM2.Q4_1.gguf"), model_id=MODEL_ID)
    (line,) = world.lines
    assert "some-model 1.2.3" in line and "Apache-2.0" in line
    assert not world.questions and not world.hub.requests and "some_model" not in sys.modules
    assert world.choose(built_in="random") == world.random, "unless another is wished for"
    assert world.choose(built_in="hub") == world.of_the_hub


def test_a_package_without_its_file_is_said_and_done_without(world, tmp_path, monkeypatch):
    monkeypatch.setattr(built_in, "PACKAGE", "some-model")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    install(tmp_path / "site", [])
    assert world.choose() == world.random
    assert "--force-reinstall" in world.lines[0] and "babbles" in world.lines[1]


def test_without_the_package_a_person_is_asked(world):
    assert world.choose(False) == world.random and "babbles" in world.lines[0]
    assert not world.hub.requests, "nothing is fetched without a yes"
    assert world.choose(True) == world.of_the_hub
    assert len(world.questions) == 2 and all("270 MB" in question and REPO in question for question in world.questions)
    _, start, sent = world.hub.bodies[0]
    assert len(world.hub.bodies) == 1 and start == 0 and sent <= HEADER_GUESS_BYTES, "workers fetch what they need"
    assert MODEL_ID in world.lines[0]


def test_what_is_here_is_not_asked_for_again(world):
    """Nor is the Hub: the commit that was found is served, also offline."""
    settings = load_settings(None, {("model", "cache_dir"): str(world.cache)}, {})
    assert world.choose(True) == world.of_the_hub
    assert world.choose(False) == world.random, "its headers alone are no model"
    pull_model(REPO, settings, lambda line: None)
    world.questions.clear()
    world.hub.requests.clear()
    assert world.choose(False) == world.of_the_hub and world.choose() == world.of_the_hub
    assert not world.questions and not world.hub.requests
    (weights,) = (world.cache / "ranges").glob("*/model.safetensors")
    weights.write_bytes(bytes(weights.stat().st_size))
    assert world.choose() == world.random, "what was changed is not believed"


def test_what_another_tool_fetched_is_here_as_well(world, tmp_path):
    snapshot_download(REPO, endpoint=world.hub.url, cache_dir=tmp_path / "hf" / "hub", token=False)
    world.hub.requests.clear()
    assert world.choose() == world.of_the_hub and not world.hub.requests


def test_without_a_terminal_nothing_is_fetched_unless_it_is_said(world):
    assert world.choose() == world.random
    (line,) = world.lines
    assert f"{PACKAGE}=={PACKAGE_VERSION}" in line and "--built-in hub" in line and "93 MB" in line
    assert not world.hub.requests
    assert world.choose(built_in="hub") == world.of_the_hub


def test_offline_with_neither_it_is_the_random_one_and_no_question(world, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert world.choose(True) == world.random
    assert not world.questions and not world.hub.requests and "babbles" in world.lines[0]
    with pytest.raises(Complaint) as refused:
        world.choose(built_in="hub")
    assert refused.value.exit_code == 4 and "offline mode is on" in refused.value.cause


def test_a_hub_that_does_not_give_it_is_said_where_it_was_not_demanded(world):
    world.hub.repos.clear()
    assert world.choose(True) == world.random
    assert "cannot be fetched" in world.lines[0] and "babbles" in world.lines[1]
    with pytest.raises(Complaint) as refused:
        world.choose(built_in="hub")
    assert refused.value.exit_code == 7


def test_up_takes_the_name_with_the_model(world, tmp_path, monkeypatch):
    monkeypatch.setattr(built_in.os, "isatty", lambda number: False)
    settings = ModelSettings(built_in="hub", cache_dir=str(world.cache))
    served = with_model(settings)
    assert (served.path, served.id) == (world.of_the_hub.path, MODEL_ID)
    assert with_model(ModelSettings(built_in="hub", id="mine", cache_dir=str(world.cache))).id == "mine"
    named = with_model(ModelSettings(path=str(tmp_path), cache_dir=str(world.cache)))
    assert (named.path, named.id) == (str(tmp_path), "")


def test_a_model_and_a_built_in_one_are_one_too_many(tmp_path):
    done = CliRunner().invoke(cli, ["up", str(tmp_path), "--built-in", "random"], standalone_mode=False)
    assert isinstance(done.exception, Complaint) and done.exception.exit_code == 2
    assert CliRunner().invoke(cli, ["up", "--built-in", "best"], standalone_mode=False).exit_code != 0
    with pytest.raises(Complaint, match="auto, hub, random"):
        load_settings(None, {}, {"HYDRA_MODEL_BUILT_IN": "best"})


def test_the_version_is_the_tested_one():
    """Of `make up`, of the sentence that tells how to get it, and of the README."""
    assert f"\n{PACKAGE}=={PACKAGE_VERSION}\n" in (ROOT / "constraints.txt").read_text()
    named = re.findall(rf"{PACKAGE}==([\d.]+)", (ROOT / "README.md").read_text())
    assert named and set(named) == {PACKAGE_VERSION}
