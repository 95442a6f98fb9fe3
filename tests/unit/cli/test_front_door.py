"""The front door: settings that are honoured or refused, and a chat template's way from there to the frontend."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner

from hydra.actors.families.coordinator import SavedState
from hydra.actors.planning.desired_model import DesiredModel
from hydra.cli.main import cli
from hydra.cli.up import check_chat_template, state_dir_of, warn_of_open_http
from hydra.complaint import Complaint
from hydra.processes.port_range import PortRange
from hydra.processes.state_dir import write_state
from hydra.protocol.batch import ROWS_MAX, TOKENS_MAX
from hydra.protocol.ids import NodeId
from hydra.settings import NOT_YET, RANGES, Settings, cache_path, load_settings, unknown_variables, with_paths
from hydra.store.models.demo_model import ensure_demo_model

ROOT = Path(__file__).parents[3]
PARENT = "hydra.processes.worker_parent.run_worker_parent"


def test_a_chat_template_is_named_by_flag_environment_or_file(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text('[model]\nchat_template = "of the file"\n')
    environ = {"HYDRA_MODEL_CHAT_TEMPLATE": "of the environment"}
    flag = {("model", "chat_template"): "of the flag"}
    assert load_settings(config, {}, {}).model.chat_template == "of the file"
    assert load_settings(config, {}, environ).model.chat_template == "of the environment"
    assert load_settings(config, flag, environ).model.chat_template == "of the flag"
    assert load_settings(config, {("model", "chat_template"): None}, {}).model.chat_template == "of the file"


def test_requests_wait_for_loads_or_are_refused():
    assert load_settings(None, {}, {"HYDRA_SERVER_WHILE_LOADING": "refuse"}).server.while_loading == "refuse"
    with pytest.raises(Complaint, match="wait, refuse"):
        load_settings(None, {}, {"HYDRA_SERVER_WHILE_LOADING": "no"})


def test_hosts_and_origins_are_lists_of_what_can_be_compared(tmp_path):
    environ = {"HYDRA_SERVER_ALLOWED_HOSTS": "llm.example.com,.corp.example"}
    config = tmp_path / "config.toml"
    config.write_text('[server]\nallowed_origins = ["https://chat.example.com", "app://chat", "null", "*"]\n')
    server = load_settings(config, {}, environ).server
    assert server.allowed_hosts == ("llm.example.com", ".corp.example") and len(server.allowed_origins) == 4
    wrong = {"HOSTS": ("https://a.example", "a:8080", "a/b"), "ORIGINS": ("a.example", "https://a.example/", "http://")}
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(Complaint, match=f"allowed_{name.lower()}"):
                load_settings(None, {}, {f"HYDRA_SERVER_ALLOWED_{name}": value})


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
    write_state(tmp_path / "state", SavedState(term=3, desired=(DesiredModel(str(model)),), nodes=(NodeId("w0"),)))
    environ = {f"HYDRA_ZMQ_{name}_ADDR": "tcp://127.0.0.1:0" for name in ("ROUTER", "BROADCAST")}
    argv = [sys.executable, "-m", "hydra", "up", str(model), "--workers", "0", "--http", "127.0.0.1:0"]
    argv += ["--max-model-len", "4096", "--state-dir", str(tmp_path / "state")]
    done = subprocess.run(
        argv, env=os.environ | environ, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "error: max_model_len 4096" in done.stderr and "2048" in done.stderr and "fix: " in done.stderr


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
    other = {bool: True, int: 2, float: 0.7, str: "elsewhere:1", tuple: ("sk-1",)}[type(kept)]
    assert getattr(getattr(load_settings(None, {}, {}), section), key) == kept
    with pytest.raises(Complaint, match="is not possible yet"):
        load_settings(None, {(section, key): other}, {})


@pytest.mark.parametrize(("section", "key"), RANGES)
def test_a_number_out_of_range_is_refused_by_name_and_the_ends_are_kept(section, key, tmp_path):
    least, most = RANGES[section, key]
    default = getattr(getattr(Settings(), section), key)
    assert least <= default <= most
    for value in (least, most):
        kept = type(default)(value)
        assert getattr(getattr(load_settings(None, {(section, key): kept}, {}), section), key) == kept
    beyond = [least - 1, most + 1] if isinstance(default, int) else [-1.0, most * 2, math.inf, math.nan]
    for value in beyond:
        with pytest.raises(Complaint) as caught:
            load_settings(None, {(section, key): type(default)(value)}, {})
        assert f"[{section}] {key}" in caught.value.what and f"{most:g}" in caught.value.cause
        assert caught.value.exit_code == 2
    (tmp_path / "mine.toml").write_text(f"[{section}]\n{key} = {json.dumps(type(default)(most * 2))}\n")
    with pytest.raises(Complaint, match=key):
        load_settings(tmp_path / "mine.toml", {}, {})


def test_a_step_has_room_for_what_may_run():
    assert RANGES["engine", "max_running"][1] <= ROWS_MAX
    assert RANGES["engine", "max_batch_tokens"][1] + RANGES["engine", "max_running"][1] <= TOKENS_MAX


@pytest.mark.parametrize(
    ("section", "key", "text"),
    [
        ("engine", "kv_memory_fraction", "1.5"),
        ("engine", "block_size", "0"),
        ("engine", "recovery_deadline", "0s"),
        ("model", "max_model_len", "-1"),
        ("model", "dtype", "int8"),
        ("engine", "share_prefixes", "none"),
        ("cluster", "reserved_vram_gb", "nan"),
    ],
)
def test_also_where_the_environment_says_it(section, key, text):
    with pytest.raises(Complaint, match=key) as caught:
        load_settings(None, {}, {f"HYDRA_{section.upper()}_{key.upper()}": text})
    assert caught.value.exit_code == 2


def test_a_duration_is_no_flag(tmp_path):
    (tmp_path / "mine.toml").write_text("[server]\ndrain_timeout = true\n")
    with pytest.raises(Complaint, match="drain_timeout"):
        load_settings(tmp_path / "mine.toml", {}, {})


def test_a_worker_keeps_the_settings_that_concern_it(monkeypatch):
    """Its command has a way of its own from settings to the process."""
    specs = []
    monkeypatch.setattr(PARENT, lambda spec, settings: specs.append(spec) or 0)
    monkeypatch.setenv("HYDRA_ZMQ_HIGH_WATER_MARK", "77")
    argv = ["worker", "--node-id", "w", "--coordinator", "tcp://127.0.0.1:5555", "--pipeline-port", "0"]
    done = CliRunner().invoke(cli, [*argv, "--device", "cpu"])
    assert done.exit_code == 0 and specs[0].zmq.high_water_mark == 77
    assert CliRunner().invoke(cli, [*argv, "--dtype", "int8"]).exit_code == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("HYDRA_AUTH_API_KEYS", "sk-secret"),
        ("HYDRA_AUTH_ENABLED", "true"),
        ("HYDRA_AUTH_RATE_LIMIT", "7"),
        ("HYDRA_AUTH_RATE_LIMIT", "100"),  # even the default: nobody counts
        ("HYDRA_AUTH_RATE_WINDOW", "1m"),
    ],
)
def test_a_guard_that_is_not_there_is_refused_by_name(name, text, tmp_path):
    key = name.removeprefix("HYDRA_AUTH_").lower()
    with pytest.raises(Complaint, match=rf"\[auth\] {key}") as caught:
        load_settings(None, {}, {name: text})
    assert caught.value.exit_code == 2 and "secret" not in str(caught.value)
    shown = {"sk-secret": '["sk-secret"]', "1m": '"1m"'}.get(text, text)
    (tmp_path / "mine.toml").write_text(f"[auth]\n{key} = {shown}\n")
    with pytest.raises(Complaint, match="is not possible yet"):
        load_settings(tmp_path / "mine.toml", {}, {})


def test_a_join_token_that_can_be_guessed_is_refused_unseen():
    with pytest.raises(Complaint, match="join_token has 15 characters") as caught:
        load_settings(None, {}, {"HYDRA_CLUSTER_JOIN_TOKEN": "fifteen letters"})
    assert caught.value.exit_code == 2 and "fifteen" not in str(caught.value)
    assert load_settings(None, {}, {"HYDRA_CLUSTER_JOIN_TOKEN": "sixteen letters."}).cluster.join_token
    assert not load_settings(None, {}, {"HYDRA_CLUSTER_JOIN_TOKEN": ""}).cluster.join_token


def test_secrets_are_in_no_representation_and_in_no_complaint(tmp_path):
    environ = {"HYDRA_CLUSTER_JOIN_TOKEN": "sixteen letters.", "HYDRA_MODEL_HF_TOKEN": "hf_abc"}
    shown = repr(load_settings(None, {}, environ))
    assert "sixteen" not in shown and "hf_abc" not in shown
    (tmp_path / "mine.toml").write_text("[cluster]\njoin_token = 1234567890123456789\n")
    with pytest.raises(Complaint, match="join_token") as caught:
        load_settings(tmp_path / "mine.toml", {}, {})
    assert "12345" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("HYDRA_JOIN_TOKEN", "HYDRA_CLUSTER_JOIN_TOKEN"),
        ("HYDRA_CACHE_DIR", "HYDRA_MODEL_CACHE_DIR"),
        ("HYDRA_ZQM_ROUTER_ADDR", "HYDRA_ZMQ_ROUTER_ADDR"),
        ("HYDRA_LOGS", "HYDRA_LOG"),
        ("HYDRA_WHATEVER", None),
    ],
)
def test_a_variable_that_nothing_reads_is_told(name, meant, monkeypatch):
    (line,) = unknown_variables({name: "x", "PATH": "y"})
    assert line == f"nothing reads {name}" + (f"; did you mean {meant}?" if meant else "")
    monkeypatch.setenv(name, "x")
    done = CliRunner().invoke(cli, ["status", "--url", "http://127.0.0.1:1"])
    assert f"warning: {line}\n" in done.stderr


def test_variables_that_are_read_are_not_told():
    known = {"HYDRA_LOG", "HYDRA_URL", "HYDRA_SEEDS", "HYDRA_TEST_AUDIT_LOG", "HYDRA_ENGINE_BLOCK_SIZE"}
    assert unknown_variables(dict.fromkeys(known, "x")) == []
    sources = [path for room in ("hydra", "scenarios", "tests/e2e") for path in (ROOT / room).rglob("*.py")]
    used = {word for path in sources for word in re.findall(r"HYDRA_[A-Z]+(?:_[A-Z]+)*", path.read_text())}
    told = {line.split()[2].rstrip(";") for line in unknown_variables(dict.fromkeys(used, "x"))}
    assert len(used) > 5 and told <= {"HYDRA_JOIN_TOKEN", "HYDRA_TEST"}, "what our own sources speak of is read"


def test_an_api_off_loopback_is_warned_of():
    with structlog.testing.capture_logs() as logs:
        for addr in ("127.0.0.1:8080", "localhost:8080", "[::1]:8080"):
            warn_of_open_http(addr)
        assert not logs
        for addr in ("0.0.0.0:8080", "192.168.0.10:80", "[::]:8080", "den.local:1"):
            warn_of_open_http(addr)
    assert [entry["http"] for entry in logs] == ["0.0.0.0:8080", "192.168.0.10:80", "[::]:8080", "den.local:1"]
    assert all("load and unload models" in entry["risk"] for entry in logs)


def test_two_clusters_of_one_user_remember_apart(tmp_path):
    settings = load_settings(None, {("model", "cache_dir"): str(tmp_path / "cache")}, {})
    rows = [PortRange.parse(text) for text in ("5655", "5655-5670", "5755")]
    first, same, other = (state_dir_of(settings, row) for row in rows)
    assert first == same != other and state_dir_of(settings, None).name == "127.0.0.1_8080"
    elsewhere = load_settings(None, {("server", "http_addr"): "127.0.0.1:9090"}, {})
    assert state_dir_of(elsewhere, rows[0]).name == "127.0.0.1_9090"


def test_a_home_that_nobody_has_is_no_place_for_a_cache_or_a_template():
    with pytest.raises(Complaint, match="chat_template"):
        with_paths(load_settings(None, {("model", "chat_template"): "~nobody-knows-them/x"}, {}))
    with pytest.raises(Complaint, match="cache_dir"):
        cache_path(load_settings(None, {("model", "cache_dir"): "~nobody-knows-them/x"}, {}).model)
