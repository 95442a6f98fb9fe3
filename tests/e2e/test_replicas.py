"""One model on two routes of real processes, behind one id: a killed worker takes one of them, and nobody's answer."""

import os
import signal
from pathlib import Path

from tests.e2e.cluster import RunningCluster, running_cluster
from tests.e2e.served import Served, all_at_once, complete

LOAD_IS_SEEN_S = 5.0  # to start a process, import torch, load: what nobody waits for here


def replicas_ready(cluster: RunningCluster) -> int:
    return int(cluster.status()["models"][0]["replicas_ready"])


def test_what_a_killed_worker_computed_goes_on_on_the_other_route(untied: Served, tmp_path: Path) -> None:
    with running_cluster(tmp_path, untied.directory, workers=2, more=("--replicas", "2")) as cluster:
        cluster.wait_until("both deployments are ready", 60.0, lambda: replicas_ready(cluster) == 2)
        layers = cluster.layers()
        assert sorted(layers) == ["w0", "w1"] and all(own == list(range(6)) for own in layers.values())
        pauses_s: dict[str, float] = {}

        def kill() -> None:
            os.kill(cluster.pid_of_node("w0"), signal.SIGKILL)

        assert all_at_once(cluster, untied, during=kill, pauses_s=pauses_s) == untied.answers
        assert max(pauses_s.values()) < LOAD_IS_SEEN_S, "the other route took over; no load was waited for"
        assert replicas_ready(cluster) < 2, "the answers were whole before the lost route was back"
        cluster.wait_until("both are ready again", 90.0, lambda: replicas_ready(cluster) == 2)
        assert complete(cluster, untied.prompts[0], stream=True) == untied.answers[0]
