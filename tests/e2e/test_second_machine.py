"""A second machine needs no copy of the model: what it is given to compute it fetches from the first, and only that.

Both machines are this one. What the second cannot see is made so by /proc/self/cwd: the same path is another place in a
process that was started elsewhere.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest

from hydra.store.models.library import LocalLibrary
from hydra.store.models.slice_ranges import slice_ranges
from tests.e2e.cluster import RunningCluster, environment, running_cluster
from tests.e2e.served import Served, complete, save_model, served
from tests.fake_hub import fake_hub

SAME_PATH = Path("/proc/self/cwd/model")
JOIN_TOKEN = "open-sesame-open-sesame"
LAYERS = 6

pytestmark = pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="no path that differs between processes")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The first machine's disk, with the model on it."""
    return served(tmp_path_factory.mktemp("first") / "model", tied=True)


@pytest.fixture
def cluster(first: Served, tmp_path: Path) -> Iterator[RunningCluster]:
    """`up` with one worker on the first machine."""
    machine = first.directory.parent
    shutil.rmtree(machine / "state", ignore_errors=True)
    with running_cluster(machine, SAME_PATH, workers=1, HYDRA_CLUSTER_JOIN_TOKEN=JOIN_TOKEN) as running:
        yield running


@contextmanager
def second_machine(cluster: RunningCluster, disk: Path, **more: str) -> Iterator[None]:
    """A worker started by hand, on a disk of its own, that has joined."""
    command = psutil.Process(cluster.pid_of_role("coordinator")).cmdline()
    spec = json.loads(command[command.index("--spec") + 1])
    argv = [sys.executable, "-m", "hydra", "worker", "--node-id", "far", "--coordinator", spec["zmq"]["router_addr"]]
    argv += ["--broadcast", spec["zmq"]["broadcast_addr"], "--device", "cpu", "--pipeline-port", "0"]
    env = {
        **environment(),
        "HYDRA_CLUSTER_JOIN_TOKEN": JOIN_TOKEN,
        "HYDRA_MODEL_CACHE_DIR": str(disk / "cache"),
        **more,
    }
    process = subprocess.Popen(argv, cwd=disk, env=env, process_group=0)
    try:
        cluster.wait_until("the far worker has joined", 60, lambda: "far" in stages(cluster))
        yield
    finally:
        parent = psutil.Process(process.pid)
        for one in [parent, *parent.children(recursive=True)]:
            one.kill()
        process.wait()


def stages(cluster: RunningCluster) -> dict[str, list[tuple[int, int]]]:
    """The layers of each node."""
    nodes = cluster.status()["nodes"]
    return {n["node_id"]: [(s["first_layer"], s["end_layer"]) for s in n["stages"]] for n in nodes}


def rebalanced(cluster: RunningCluster) -> tuple[int, int]:
    """Plans again; the far worker's share once it serves."""
    assert httpx2.post(f"{cluster.url}/api/cluster/rebalance", timeout=60.0).is_success

    def serves() -> bool:
        status = cluster.status()
        far = [s for n in status["nodes"] if n["node_id"] == "far" for s in n["stages"]]
        return bool(status["ready"]) and bool(far) and all(s["state"] == "ready" for s in far)

    cluster.wait_until("the far worker serves", 60, serves)
    (share,) = stages(cluster)["far"]
    return share


def slice_bytes(directory: Path, share: tuple[int, int]) -> int:
    described = LocalLibrary().describe(str(directory))
    return sum(tensor.length for tensor in slice_ranges(described, *share))


def test_a_machine_without_the_model_fetches_its_layers_and_answers_as_before(
    cluster: RunningCluster, first: Served, tmp_path: Path
) -> None:
    before = [complete(cluster, prompt, stream=False) for prompt in first.prompts]
    assert before == first.answers
    with second_machine(cluster, tmp_path):
        share = rebalanced(cluster)
        assert [complete(cluster, prompt, stream=True) for prompt in first.prompts] == first.answers
        assert not (tmp_path / "model").exists()
        mine = slice_bytes(first.directory, share)
        assert 0 < mine < slice_bytes(first.directory, (0, LAYERS)) / 1.5
        assert mine <= cluster.metric("hydra_store_bytes_total") <= 1.03 * mine
        assert cluster.metric("hydra_store_refusals_total") == 0


@pytest.mark.long
def test_a_coordinator_that_is_killed_while_it_lends_is_waited_for(
    cluster: RunningCluster, first: Served, tmp_path: Path
) -> None:
    with second_machine(cluster, tmp_path):
        pid = cluster.pid_of_role("coordinator")
        assert httpx2.post(f"{cluster.url}/api/cluster/rebalance", timeout=60.0).is_success
        os.kill(pid, signal.SIGKILL)
        assert [complete(cluster, prompt, stream=True) for prompt in first.prompts] == first.answers
        assert cluster.pid_of_role("coordinator") != pid
        cluster.wait_until("both are back", 60, lambda: set(stages(cluster)) == {"w0", "far"})
        mine = slice_bytes(first.directory, rebalanced(cluster))
        assert [complete(cluster, prompt, stream=True) for prompt in first.prompts] == first.answers
        assert cluster.metric("hydra_store_bytes_total") <= 1.03 * mine


def test_another_model_at_the_same_path_is_not_taken_for_it(
    cluster: RunningCluster, first: Served, tmp_path: Path
) -> None:
    save_model(tmp_path / "model", tied=True, seed=6)
    with second_machine(cluster, tmp_path):
        mine = slice_bytes(first.directory, rebalanced(cluster))
        assert [complete(cluster, prompt, stream=True) for prompt in first.prompts] == first.answers
        assert mine <= cluster.metric("hydra_store_bytes_total") <= 1.03 * mine


def test_the_same_model_at_the_same_path_is_read_there(cluster: RunningCluster, first: Served, tmp_path: Path) -> None:
    shutil.copytree(first.directory, tmp_path / "model")
    with second_machine(cluster, tmp_path):
        rebalanced(cluster)
        assert [complete(cluster, prompt, stream=True) for prompt in first.prompts] == first.answers
        assert cluster.metric("hydra_store_bytes_total") == 0


def test_a_machine_that_cannot_reach_the_hub_fetches_from_the_worker_that_has(first: Served, tmp_path: Path) -> None:
    (tmp_path / "near").mkdir()
    (tmp_path / "far").mkdir()
    with fake_hub() as hub:
        hub.add("org/name", first.directory)
        near = {
            "HF_ENDPOINT": hub.url,
            "HYDRA_MODEL_CACHE_DIR": str(tmp_path / "near"),
            "HYDRA_CLUSTER_JOIN_TOKEN": JOIN_TOKEN,
        }
        with running_cluster(tmp_path, Path("org/name"), workers=1, **near) as cluster:
            assert complete(cluster, first.prompts[3], stream=True) == first.answers[3]
            sent = len(hub.sent)
            with second_machine(cluster, tmp_path / "far", HF_ENDPOINT="http://127.0.0.1:1"):
                rebalanced(cluster)
                assert [complete(cluster, prompt, stream=True) for prompt in first.prompts] == first.answers
            assert sent and len(hub.sent) == sent, "the Hub was asked again for what a neighbour holds"
            assert cluster.metric("hydra_store_bytes_total") == 0, "the coordinator was asked where a worker would do"
