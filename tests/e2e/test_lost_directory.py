"""A model that is computed needs its files no more: they may go, and plans, coordinators and frontends may come."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.e2e.cluster import RunningCluster, running_cluster
from tests.e2e.served import Served, all_at_once, complete, wait_whole


def kill(cluster: RunningCluster, role: str) -> None:
    pid = cluster.pid_of_role(role)
    os.kill(pid, signal.SIGKILL)
    cluster.wait_until(f"another {role}", 60, lambda: serves(cluster) and cluster.pid_of_role(role) != pid)


def serves(cluster: RunningCluster) -> bool:
    try:
        return bool(cluster.status()["ready"])
    except Exception:  # noqa: BLE001 - nobody listens just now
        return False


@pytest.mark.long
def test_a_model_whose_directory_is_deleted_goes_on(untied: Served, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(untied.directory, directory)
    with running_cluster(tmp_path, directory, HYDRA_MODEL_CACHE_DIR=str(tmp_path / "cache")) as cluster:
        layers = cluster.layers()
        shutil.rmtree(directory)
        cluster.rebalance()
        wait_whole(cluster, 2)
        assert all_at_once(cluster, untied, during=lambda: kill(cluster, "coordinator")) == untied.answers
        wait_whole(cluster, 2)
        assert cluster.layers() == layers
        kill(cluster, "frontend")
        assert complete(cluster, untied.prompts[0], stream=True) == untied.answers[0]
        assert "going on with what was known of it" in cluster.processes.messages()
