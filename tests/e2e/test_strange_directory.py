"""Whoever starts Hydra inside a model directory runs nothing that lies there; one that cannot be served is not."""

import json
import shutil
from pathlib import Path

import psutil
import pytest

from hydra.store.models.demo_model import ensure_demo_model
from scenarios.processes import processes
from tests.e2e.cluster import running_cluster
from tests.e2e.served import Served, complete

# What our processes import, by the names under which Python would look for it where it stands: of others, of Python.
LURES = (
    "attrs", "cattrs", "click", "httpx2", "huggingface_hub", "hypercorn", "jinja2", "msgpack", "numpy", "orjson",
    "quart", "quart_trio", "safetensors", "structlog", "tokenizers", "torch", "trio", "zmq",
    "hmac", "json", "logging", "random", "secrets", "socket", "subprocess", "threading", "tomllib", "uuid",
)  # fmt: skip


def test_nothing_is_imported_from_where_it_is_started(
    untied: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the audit hook, which takes offence at Python's own search for runpy. The lures tell as much."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    shutil.copytree(untied.directory, tmp_path, dirs_exist_ok=True)
    for name in LURES:
        (tmp_path / f"{name}.py").write_text("open('sprung', 'a').write(__name__ + '\\n')\nraise ImportError\n")
    with running_cluster(tmp_path, Path(), workers=2, by_hand=["h0"]) as cluster:
        assert complete(cluster, untied.prompts[0], stream=True) == untied.answers[0]
    assert not (tmp_path / "sprung").exists(), (tmp_path / "sprung").read_text()


def test_a_directory_with_a_tokenizer_that_is_none_ends_the_start(tmp_path: Path) -> None:
    """A missing one is found out before anybody is started; this takes a trial."""
    directory = tmp_path / "mute"
    shutil.copytree(ensure_demo_model(tmp_path), directory)
    (directory / "tokenizer.json").write_text("{}")
    with processes(tmp_path) as running:
        up = running.start_up(directory, 1)
        ready, _ = up.communicate(timeout=90)
        lines = running.messages().splitlines()
    assert (up.returncode, ready) == (7, "")
    assert any(line.startswith("error: tokenizer.json makes no sense: ") for line in lines)
    assert [line[:6] for line in lines if line[:6] in ("error:", "cause:", "fix:  ", "Traceb")] == [
        "error:",
        "cause:",
        "fix:  ",
    ]
    started = [json.loads(line)["pid"] for line in lines if '"child_started"' in line]
    assert len(started) == 3 and not [pid for pid in started if psutil.pid_exists(pid)]
