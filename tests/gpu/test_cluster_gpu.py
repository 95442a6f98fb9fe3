"""Real processes on a CUDA device: the text that transformers says on the CPU, also when a worker is killed."""

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.e2e.cluster import running_cluster
from tests.e2e.served import Served, all_at_once, complete, served, wait_whole

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return served(tmp_path_factory.mktemp("model"), tied=False)


def test_two_workers_share_a_device_and_one_of_them_is_killed(model: Served, tmp_path: Path) -> None:
    with running_cluster(tmp_path, model.directory, workers=2, more=("--device", "cuda:0")) as cluster:
        assert [(node["device"], node["kernels"]) for node in cluster.status()["nodes"]] == [("cuda:0", "triton")] * 2
        assert [complete(cluster, prompt, stream=False) for prompt in model.prompts] == model.answers
        assert all_at_once(cluster, model) == model.answers
        for victim in ("w0", "w1"):
            pid = cluster.pid_of_node(victim)
            assert all_at_once(cluster, model, during=lambda pid=pid: os.kill(pid, signal.SIGKILL)) == model.answers
            wait_whole(cluster, 2)
            assert cluster.pid_of_node(victim) != pid


def test_a_device_and_the_cpu_share_a_model(model: Served, tmp_path: Path) -> None:
    more = ("--device", "cuda:0,cpu")
    with running_cluster(tmp_path, model.directory, workers=2, more=more) as cluster:
        assert {node["device"]: len(node["stages"]) for node in cluster.status()["nodes"]} == {"cuda:0": 1, "cpu": 1}
        assert all_at_once(cluster, model) == model.answers
        pid = cluster.pid_of_node("w0")
        assert all_at_once(cluster, model, during=lambda: os.kill(pid, signal.SIGKILL)) == model.answers
