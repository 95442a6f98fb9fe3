"""The front door: settings that are honoured or refused, and a chat template's way from there to the frontend."""

import subprocess
import sys
from pathlib import Path

import pytest

from hydra.child_spec import FrontendSpec, from_json, to_json
from hydra.cli import check_chat_template
from hydra.complaint import Complaint
from hydra.settings import NOT_YET, load_settings


def test_a_chat_template_is_named_by_flag_environment_or_file(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text('[model]\nchat_template = "of the file"\n')
    environ = {"HYDRA_MODEL_CHAT_TEMPLATE": "of the environment"}
    flag = {("model", "chat_template"): "of the flag"}
    assert load_settings(config, {}, {}).model.chat_template == "of the file"
    assert load_settings(config, {}, environ).model.chat_template == "of the environment"
    assert load_settings(config, flag, environ).model.chat_template == "of the flag"
    assert load_settings(config, {("model", "chat_template"): None}, {}).model.chat_template == "of the file"


def test_a_frontend_is_told_which_model_it_is_for():
    spec = FrontendSpec(
        node_id="frontend", router_addr="a", broadcast_addr="b", http_fd=3, http_url="c",
        model_path="/m", chat_template="/t.jinja",
    )  # fmt: skip
    assert from_json(to_json(spec), FrontendSpec) == spec


def test_a_chat_template_that_is_not_there_is_a_complaint(tmp_path):
    argv = [
        sys.executable,
        "-m",
        "hydra",
        "up",
        "--state-dir",
        str(tmp_path),
        "--chat-template",
        str(tmp_path / "none"),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 2 and "no chat template at" in done.stderr and done.stdout == ""


@pytest.mark.parametrize("file", ["none", ".", "/proc/self/mem"])
def test_a_chat_template_that_cannot_be_read_is_a_complaint(tmp_path, file):
    with pytest.raises(Complaint) as caught:
        check_chat_template(tmp_path / file)
    assert caught.value.exit_code == 2 and str(tmp_path / file) in caught.value.what and caught.value.cause


def test_a_chat_template_that_can_be_read_is_none(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("")
    check_chat_template(file)


@pytest.mark.parametrize(("section", "key", "kept"), NOT_YET)
def test_a_key_that_would_be_ignored_is_refused_instead(section, key, kept):
    other = {bool: True, int: 2, float: 0.7, str: "elsewhere:1"}[type(kept)]
    assert getattr(getattr(load_settings(None, {}, {}), section), key) == kept
    with pytest.raises(Complaint, match="is not possible yet"):
        load_settings(None, {(section, key): other}, {})
