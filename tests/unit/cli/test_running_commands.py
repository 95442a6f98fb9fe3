"""The commands that ask a running cluster, before a small server that answers as one."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler

import click
import pytest
from click.testing import CliRunner

from hydra.cli import cluster as cluster_commands
from hydra.cli.main import cli
from hydra.cli.named_model import NamedModel
from hydra.complaint import Complaint
from tests.unit.cli.served import serving

JOB = {"job": "j7", "model_id": "m", "state": "loading"}


class Cluster:
    """`answers[path]`: status and JSON (bytes: as they are). Remembers what was posted."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, object]] = {}
        self.posted: list[dict[str, object]] = []
        self.url = ""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content = made.answers.get(self.path, (404, {"error": {"message": "nothing there"}}))
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            made.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.do_GET()

    with serving(Handler) as made.url:
        yield made


def load(cluster: Cluster, *words: str):
    return CliRunner().invoke(cli, ["load", *words, "--url", cluster.url], standalone_mode=False)


def ended(cluster: Cluster, code: str, message: str = "no") -> None:
    failed = {**JOB, "state": "failed", "nodes": [], "error": {"code": code, "message": message}}
    cluster.answers |= {"/api/models/load": (202, JOB), "/api/models/jobs/j7": (200, failed)}


def test_a_directory_of_this_machine_is_sent_as_an_absolute_path(cluster, tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    ended(cluster, "model_not_found")
    for words, sent in {
        "./org/name": str(tmp_path / "org" / "name"),
        "org/name": str(tmp_path / "org" / "name"),  # a directory here wins
        "org/other": "org/other",
        "./nowhere": str(tmp_path / "nowhere"),
        "/models/x": "/models/x",
        "~nobody-knows-them/x": "~nobody-knows-them/x",
    }.items():
        assert isinstance(load(cluster, words).exception, Complaint)
        assert cluster.posted.pop() == {"model_path": sent, "wait": False}


def test_a_path_that_exists_only_here_says_so(cluster, tmp_path):
    ended(cluster, "model_not_found", "There is no model directory")
    here = load(cluster, str(tmp_path)).exception
    assert isinstance(here, Complaint) and here.exit_code == 7
    assert "where the coordinator runs (127.0.0.1)" in here.what and "exists on this machine" in here.cause
    nowhere = load(cluster, str(tmp_path / "none")).exception
    assert isinstance(nowhere, Complaint) and nowhere.what == "There is no model directory"
    ended(cluster, "bad_model", "config.json is missing")
    broken = load(cluster, str(tmp_path)).exception
    assert isinstance(broken, Complaint) and broken.what == "config.json is missing"


def test_a_path_is_not_looked_for_in_somebody_elses_home():
    assert NamedModel.read("org/name@v1").sent == "org/name@v1"
    assert NamedModel.read("").sent == ""


def interrupting(after: int) -> Callable[..., object]:
    """Ctrl-C at the n-th question."""
    real, asked = cluster_commands.ask_cluster, []

    def ask(*args: object) -> object:
        asked.append(args)
        if len(asked) > after:
            raise KeyboardInterrupt
        return real(*args)

    return ask


@pytest.mark.parametrize(
    ("after", "words"), [(1, "curl -X DELETE {}/api/models/jobs/j7"), (0, "{}/api/models/jobs lists")]
)
def test_ctrl_c_says_that_the_load_goes_on_and_how_to_call_it_off(cluster, monkeypatch, after, words):
    cluster.answers["/api/models/load"] = (202, JOB)
    monkeypatch.setattr(cluster_commands, "ask_cluster", interrupting(after))
    done = load(cluster, "org/name")
    assert isinstance(done.exception, click.Abort), "which is exit 130"
    assert words.format(cluster.url) in done.stderr


def test_what_is_wished_of_a_load_is_sent(cluster):
    cluster.answers["/api/models/load"] = (202, JOB)
    ended(cluster, "bad_model", "config.json is missing")
    load(cluster, "org/name", "--quantize", "int4", "--replicas", "2")
    assert cluster.posted.pop() == {"model_path": "org/name", "quantize": "int4", "replicas": 2, "wait": False}
    assert isinstance(load(cluster, "org/name", "--quantize", "int3").exception, click.UsageError)


def test_a_dtype_that_nobody_computes_in_is_a_usage_error(cluster):
    assert isinstance(load(cluster, "org/name", "--dtype", "int4").exception, click.UsageError)
    assert not cluster.posted


@pytest.mark.parametrize("content", [b"<html>", b"[]", {"error": None}, {"detail": "x"}])
def test_a_server_that_is_not_ours_is_told(cluster, content):
    cluster.answers["/api/cluster/status"] = (502, content)
    done = CliRunner().invoke(cli, ["ps", "--url", cluster.url])
    assert isinstance(done.exception, Complaint) and done.exception.exit_code == 5


def test_a_refusal_moves_no_cursor(cluster):
    """Its text may be of a model, or of whatever answers there."""
    cluster.answers["/api/cluster/status"] = (404, {"error": {"message": "no \x1b[2J\x07 model", "code": None}})
    done = CliRunner().invoke(cli, ["ps", "--url", cluster.url])
    assert isinstance(done.exception, Complaint) and done.exception.exit_code == 7
    assert done.exception.what == "no \\x1b[2J\\x07 model"


@pytest.mark.parametrize(("url", "exit_code"), [("ftp://x", 2), ("http://[::", 2), ("x", 2), ("http://127.0.0.1:1", 5)])
def test_a_url_that_leads_nowhere_is_told(url, exit_code):
    done = CliRunner().invoke(cli, ["status", "--url", url])
    assert isinstance(done.exception, Complaint) and done.exception.exit_code == exit_code
