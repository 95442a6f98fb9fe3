"""The front door: settings that are honoured or refused, and a chat template's way from there to the frontend."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hydra.actors.coordinator import SavedState
from hydra.actors.wish import Wish
from hydra.child_spec import FrontendSpec, from_json, to_json
from hydra.complaint import Complaint
from hydra.protocol.ids import NodeId
from hydra.settings import NOT_YET, load_settings
from hydra.state_dir import write_state
from hydra.store.demo_model import ensure_demo_model

ROOT = Path(__file__).parents[2]


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
        chat_template="/t.jinja", chat_template_model="/m",
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
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 2 and "no chat template at" in done.stderr and done.stdout == ""


def test_up_ends_when_it_is_to_serve_more_positions_than_the_model_has(tmp_path):
    """Even a model that it remembers to have served."""
    model = ensure_demo_model(tmp_path / "demo")
    write_state(tmp_path / "state", SavedState(term=3, wishes=(Wish(str(model)),), nodes=(NodeId("w0"),)))
    environ = {f"HYDRA_ZMQ_{name}_ADDR": "tcp://127.0.0.1:0" for name in ("ROUTER", "BROADCAST")}
    argv = [sys.executable, "-m", "hydra", "up", str(model), "--workers", "0", "--http", "127.0.0.1:0"]
    argv += ["--max-model-len", "4096", "--state-dir", str(tmp_path / "state")]
    done = subprocess.run(
        argv, env=os.environ | environ, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "error: max_model_len 4096" in done.stderr and "2048" in done.stderr and "fix: " in done.stderr


@pytest.mark.parametrize(("section", "key", "kept"), NOT_YET)
def test_a_key_that_would_be_ignored_is_refused_instead(section, key, kept):
    other = {bool: True, int: 2, float: 0.7, str: "elsewhere:1"}[type(kept)]
    assert getattr(getattr(load_settings(None, {}, {}), section), key) == kept
    with pytest.raises(Complaint, match="is not possible yet"):
        load_settings(None, {(section, key): other}, {})
