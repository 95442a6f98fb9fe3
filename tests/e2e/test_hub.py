"""A model by its Hub id over real processes: each worker fetches its own layers, once, and answers the same."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import snapshot_download

from hydra.protocol.model.model_spec import TensorRange
from hydra.store.models.library import LocalLibrary
from tests.e2e.cluster import RunningCluster, environment, running_cluster
from tests.e2e.served import Served, all_at_once, served, wait_whole
from tests.fake_hub import FakeHub, Fault, fake_hub

REPO = "org/llama"
BABBLES = 8  # short answers of random weights


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return served(tmp_path_factory.mktemp("model"), tied=False, lengths=(2, 9, 33))


@pytest.fixture
def hub(model: Served) -> Iterator[FakeHub]:
    with fake_hub() as found:
        found.add(REPO, model.directory)
        yield found


def settings(hub: FakeHub, tmp_path: Path, **more: str) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HYDRA_MODEL_CACHE_DIR": str(tmp_path / "cache"), **more}


def slices(cluster: RunningCluster, directory: Path) -> dict[str, list[TensorRange]]:
    """The tensors that each worker needs, by what the status says of its layers."""
    library = LocalLibrary()
    described = library.describe(str(directory))
    return {
        node["node_id"]: list(library.slice_ranges(described, stage["first_layer"], stage["end_layer"]))
        for node in cluster.status()["nodes"]
        for stage in node["stages"]
    }


def holds(tensors: list[TensorRange], path: str, start: int, sent: int) -> bool:
    """Whether a body went to a worker with these tensors: all of it lies in what that worker needs."""
    spans = [(t.offset, t.offset + t.length) for t in tensors if path.endswith("/" + t.file)]
    return sum(max(0, min(start + sent, end) - max(start, first)) for first, end in spans) == sent


@pytest.mark.long
def test_a_four_way_split_fetches_each_layer_once(hub: FakeHub, model: Served, tmp_path: Path) -> None:
    shards = len(list(model.directory.glob("*.safetensors")))
    with running_cluster(tmp_path, REPO, workers=4, **settings(hub, tmp_path)) as cluster:
        assert cluster.model_id() == REPO
        assert all_at_once(cluster, model) == model.answers
        needed = slices(cluster, model.directory)
        assert len(needed) == 4
        headers, bodies = hub.sent[:shards], hub.sent[shards:]
        assert all(start == 0 for _, start, _ in headers)
        for path, start, sent in bodies:
            assert [node for node, tensors in needed.items() if holds(tensors, path, start, sent)], (path, start, sent)
        for tensors in needed.values():
            sent = sum(body[2] for body in bodies if holds(tensors, *body))
            assert 0 < sent <= 1.03 * sum(tensor.length for tensor in tensors)
        for file in {path.rsplit("/", 1)[1] for path, _, _ in bodies}:
            again = [body for body in bodies if body[0].endswith("/" + file)]
            assert len({start for _, start, _ in again}) == len(again), "no range went out twice"
        (job,) = httpx2.get(f"{cluster.url}/api/models/jobs").json()["jobs"]
        assert job["state"] == "ready" and job["bytes_done"] == job["bytes_total"] == sum(body[2] for body in bodies)


def test_offline_a_cluster_starts_and_recovers_from_its_cache(hub: FakeHub, model: Served, tmp_path: Path) -> None:
    pulled = hydra(tmp_path, "pull", REPO, "--json", **settings(hub, tmp_path))
    assert pulled.returncode == 0, pulled.stderr
    hub.requests.clear()
    offline = settings(hub, tmp_path, HF_HUB_OFFLINE="1")
    with running_cluster(tmp_path, REPO, workers=2, **offline) as cluster:
        pid = cluster.pid_of_node("w1")
        assert all_at_once(cluster, model, during=lambda: os.kill(pid, signal.SIGKILL)) == model.answers
        wait_whole(cluster, 2)
    assert not hub.requests


def test_a_snapshot_in_the_hugging_face_cache_serves_offline(hub: FakeHub, model: Served, tmp_path: Path) -> None:
    """What another tool fetched is enough for a cluster, its words included, and is only read."""
    root = tmp_path / "hf" / "hub"
    snapshot = Path(snapshot_download(REPO, endpoint=hub.url, cache_dir=root, token=False))
    hub.requests.clear()
    before = {path: path.lstat().st_mtime_ns for path in root.rglob("*")}
    env = settings(hub, tmp_path, TRANSFORMERS_OFFLINE="1", HF_HUB_CACHE="", HF_HOME=str(tmp_path / "hf"))
    with running_cluster(tmp_path, REPO, workers=2, **env) as cluster:
        assert all_at_once(cluster, model) == model.answers
        assert cluster.status()["models"][0]["model_path"] == f"{REPO}@{snapshot.name}"
    assert not hub.requests and not (tmp_path / "cache" / "ranges").exists()
    assert {path: path.lstat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_coordinator_that_is_killed_stays_at_its_commit(hub: FakeHub, model: Served, tmp_path: Path) -> None:
    """The branch moves on meanwhile; running answers go on with the weights they began with."""
    with running_cluster(tmp_path, REPO, workers=2, **settings(hub, tmp_path)) as cluster:
        before = cluster.status()["models"][0]["model_path"]
        for name in list(hub.repos[REPO]):
            if name.endswith(".safetensors"):
                hub.repos[REPO][name] = hub.repos[REPO][name][:-400] + bytes(400)
        pid = cluster.pid_of_role("coordinator")
        assert all_at_once(cluster, model, during=lambda: os.kill(pid, signal.SIGKILL)) == model.answers
        wait_whole(cluster, 2)
        assert cluster.status()["models"][0]["model_path"] == before == f"{REPO}@{before.split('@')[1]}"
        assert before.split("@")[1] != hub.commit(REPO)


def hydra(tmp_path: Path, *argv: str, typed: str = "", **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "hydra", *argv],
        cwd=tmp_path, env={**environment(), **env}, input=typed, capture_output=True, text=True, timeout=100,
        check=False,
    )  # fmt: skip


def test_a_gated_model_ends_up_with_the_way_to_get_access(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = "hf-secret"
    argv = ("up", REPO, "--workers", "1", "--device", "cpu", "--http", "127.0.0.1:0", "--state-dir", "state")
    ended = hydra(tmp_path, *argv, **settings(hub, tmp_path))
    assert ended.returncode == 6 and f"{hub.url}/{REPO}" in ended.stderr and "hf_token" in ended.stderr


def test_the_token_is_in_no_command_line_and_no_log(hub: FakeHub, model: Served, tmp_path: Path) -> None:
    hub.token = "hf-secret"
    log = tmp_path / "log"
    with log.open("w") as stderr, redirected(stderr):
        env = settings(hub, tmp_path, HYDRA_MODEL_HF_TOKEN="hf-secret", HYDRA_LOG="debug")
        with running_cluster(tmp_path, REPO, workers=1, **env) as cluster:
            lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in cluster.family()]
            assert any("_coordinator" in line for line in lines)
            assert not any("hf-secret" in line for line in lines)
    assert "hf-secret" not in log.read_text()


class redirected:  # noqa: N801 - reads as a statement
    """This process's standard error, which its children inherit, goes to a file meanwhile."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> None:
        self.kept = os.dup(2)
        os.dup2(self.file.fileno(), 2)

    def __exit__(self, *_: object) -> None:
        os.dup2(self.kept, 2)
        os.close(self.kept)


def test_a_cancelled_load_can_be_taken_up_again(hub: FakeHub, model: Served, tmp_path: Path) -> None:
    with running_cluster(tmp_path, workers=2, **settings(hub, tmp_path)) as cluster:
        hub.fault = lambda asked: Fault(pause_s=0.2) if asked.start else None
        begun = post(cluster, {"model_path": REPO, "wait": False})
        assert begun.status_code == 202
        job = f"{cluster.url}/api/models/jobs/{begun.json()['job']}"
        cluster.wait_until("both workers fetch", 30, lambda: sum(1 for body in hub.sent if body[1]) >= 2)
        assert httpx2.get(job).json()["state"] == "loading"
        called_off = httpx2.delete(job).json()
        assert called_off["state"] == "cancelled" and called_off["error"]["code"] == "cancelled"
        assert httpx2.get(job).json() == called_off
        assert [card.id for card in cluster.client.models.list().data] == ["hydra-demo-random"]
        hub.fault = lambda asked: None
        loaded = post(cluster, {"model_path": REPO})
        assert loaded.json() == {"model_id": REPO, "state": "ready"}
        for path in model.directory.glob("*.safetensors"):
            times = hub.times_sent(path.name, path.stat().st_size)
            assert times[header_end(path) :].max() <= 2 + (header_end(path) < 65_536), "what was in flight, once more"
        asked = {"model": REPO, "prompt": model.prompts[1], "max_tokens": 64, "temperature": 0}
        assert cluster.client.completions.create(**asked).choices[0].text == model.answers[1]


def header_end(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def post(cluster: RunningCluster, body: dict[str, Any]) -> httpx2.Response:
    return httpx2.post(f"{cluster.url}/api/models/load", json=body, timeout=90.0)


def test_the_load_command_follows_its_job_and_chat_talks_to_what_is_there(hub: FakeHub, tmp_path: Path) -> None:
    with running_cluster(tmp_path, workers=2, **settings(hub, tmp_path, HYDRA_MODEL_MAX_MODEL_LEN="64")) as cluster:
        done = hydra(tmp_path, "load", REPO, "--id", "m", "--url", cluster.url, "--json")
        assert (done.returncode, done.stdout) == (0, '{"model_id": "m", "state": "ready"}\n'), done.stderr
        none = hydra(tmp_path, "load", "org/none", "--url", cluster.url)
        assert none.returncode == 7 and "no model org/none" in none.stderr
        lines = ["/model m", "hi", "/model hydra-demo-random", *["babble", "/clear"] * BABBLES, "/model"]
        talked = hydra(tmp_path, "chat", "--json", "--url", cluster.url, typed="\n".join(lines))
        refused, *babble = map(json.loads, talked.stdout.splitlines())
        assert refused["model"] == "m" and refused["content"] == "" and refused["finish_reason"] == "error"
        assert "chat template" in refused["error"]["message"], "this model has none"
        assert len(babble) == BABBLES and {answer["finish_reason"] for answer in babble} <= {"stop", "length"}
        assert any(answer["content"] for answer in babble), "at random, some may be empty"
        assert talked.returncode == 2 and "* hydra-demo-random" in talked.stderr and "  m" in talked.stderr
