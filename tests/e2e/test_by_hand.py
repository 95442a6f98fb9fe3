"""Workers started by hand: they join, are used, are lost for good, freeze with their machine, and die of poison."""

import os
import signal
import threading
from pathlib import Path

import openai
import psutil
import pytest

from hydra.actors.membership.registry import LOST_AFTER_S
from tests.e2e.cluster import RunningCluster, running_cluster
from tests.e2e.served import Served, all_at_once, complete, wait_whole

LAYERS = [0, 1, 2, 3, 4, 5]


def all_layers(cluster: RunningCluster) -> list[int]:
    return sorted(layer for held in cluster.layers().values() for layer in held)


def is_member(cluster: RunningCluster, name: str) -> bool:
    return name in [node["node_id"] for node in cluster.status()["nodes"]]


def test_a_worker_that_never_comes_back_is_done_without(untied: Served, tmp_path: Path) -> None:
    with running_cluster(tmp_path, untied.directory, workers=2, by_hand=["h0"]) as cluster:
        assert "h0" in cluster.layers()
        pid, parent = cluster.pid_of_node("h0"), cluster.processes.started["h0"]

        def lose() -> None:
            parent.kill()
            os.kill(pid, signal.SIGKILL)

        assert all_at_once(cluster, untied, during=lose) == untied.answers
        assert not is_member(cluster, "h0")
        assert all_layers(cluster) == LAYERS, "the survivors took over its layers"
        assert all_at_once(cluster, untied) == untied.answers


@pytest.mark.long
def test_a_machine_that_freezes_for_ten_seconds_is_fenced_and_keeps_its_worker(untied: Served, tmp_path: Path) -> None:
    """Parent and worker are stopped together, so that the parent cannot kill the worker for its silence."""
    with running_cluster(tmp_path, untied.directory, workers=1, by_hand=["h0"]) as cluster:
        pid, parent = cluster.pid_of_node("h0"), cluster.processes.started["h0"].pid

        def signal_both(number: int) -> None:
            for stopped in (parent, pid):
                os.kill(stopped, number)

        thaw = threading.Timer(10.0, signal_both, (signal.SIGCONT,))

        def freeze() -> None:
            signal_both(signal.SIGSTOP)
            thaw.start()

        assert all_at_once(cluster, untied, during=freeze) == untied.answers
        assert cluster.layers() == {"w0": LAYERS}
        thaw.join()
        cluster.wait_until("h0 is a member again", 20, lambda: is_member(cluster, "h0"))
        cluster.wait_until(
            "a word of the old epoch refused", 20, lambda: cluster.metric("hydra_stale_dropped_total") > 0
        )
        assert cluster.pid_of_node("h0") == pid
        assert complete(cluster, untied.prompts[3], stream=True) == untied.answers[3]


@pytest.mark.long
def test_a_worker_that_stays_stopped_is_replaced_by_its_parent(untied: Served, tmp_path: Path) -> None:
    with running_cluster(tmp_path, untied.directory, workers=2) as cluster:
        pid = cluster.pid_of_node("w1")
        assert all_at_once(cluster, untied, during=lambda: os.kill(pid, signal.SIGSTOP)) == untied.answers
        cluster.wait_until("the parent has lost patience", 20, lambda: not psutil.pid_exists(pid))
        wait_whole(cluster, 2)
        assert cluster.pid_of_node("w1") != pid


def test_a_coordinator_that_stood_still_takes_nobody_for_silent(untied: Served, tmp_path: Path) -> None:
    """For longer than silence may last; its parent's patience is longer still. The plan stays as it is."""
    with running_cluster(tmp_path, untied.directory, workers=2) as cluster:
        pid, before = cluster.pid_of_role("coordinator"), cluster.status()
        thaw = threading.Timer(LOST_AFTER_S + 2.0, os.kill, (pid, signal.SIGCONT))

        def freeze() -> None:
            os.kill(pid, signal.SIGSTOP)
            thaw.start()

        assert all_at_once(cluster, untied, during=freeze) == untied.answers
        thaw.join()
        assert complete(cluster, untied.prompts[3], stream=True) == untied.answers[3]
        after = cluster.status()
        assert cluster.pid_of_role("coordinator") == pid
        assert [node["generation"] for node in after["nodes"]] == [node["generation"] for node in before["nodes"]]
        assert after["epoch"] == before["epoch"] and after["models"][0]["epoch"] == before["models"][0]["epoch"]


@pytest.mark.long
def test_a_worker_that_joins_is_a_spare_and_is_used_after_a_rebalance(untied: Served, tmp_path: Path) -> None:
    with running_cluster(tmp_path, untied.directory, workers=1) as cluster:
        cluster.processes.start_worker("h0")
        cluster.wait_until("h0 has joined", 30, lambda: is_member(cluster, "h0"))
        assert cluster.layers() == {"w0": LAYERS}, "a route that works is left in peace"
        assert all_at_once(cluster, untied, during=cluster.rebalance) == untied.answers
        cluster.wait_until("h0 holds layers", 20, lambda: "h0" in cluster.layers())
        assert all_layers(cluster) == LAYERS and len(cluster.layers()) == 2
        assert all_at_once(cluster, untied) == untied.answers


def test_a_worker_that_joins_takes_over_after_a_loss(untied: Served, tmp_path: Path) -> None:
    with running_cluster(tmp_path, untied.directory, workers=1) as cluster:
        cluster.processes.start_worker("h0")
        cluster.wait_until("h0 has joined", 30, lambda: is_member(cluster, "h0"))
        pid = cluster.pid_of_node("w0")
        assert all_at_once(cluster, untied, during=lambda: os.kill(pid, signal.SIGKILL)) == untied.answers
        assert cluster.layers() == {"h0": LAYERS}


def test_poison_ends_with_an_error_after_its_third_death_and_the_others_are_whole(
    untied: Served, tmp_path: Path
) -> None:
    poison, diary = 1000, tmp_path / "diary"
    assert not any(poison in prompt for prompt in untied.prompts)
    assert not any(f"<{poison}>" in answer for answer in untied.answers)
    program = ("scenarios.poisoned_worker", "worker", "--poison", str(poison), "--diary", str(diary))
    with running_cluster(tmp_path, untied.directory, workers=0, by_hand=["h0", "h1", "h2"], program=program) as cluster:

        def ask_for_death() -> None:
            with pytest.raises(openai.InternalServerError) as told:
                cluster.client.completions.create(model=cluster.model_id(), prompt=[5, poison], max_tokens=8)
            assert told.value.code == "replay_limit"

        assert all_at_once(cluster, untied, during=ask_for_death) == untied.answers
        deaths = diary.read_text().split()
        assert len(deaths) == len(set(deaths)) == 3
        wait_whole(cluster, 3)
        assert all_at_once(cluster, untied) == untied.answers


@pytest.mark.long
def test_a_new_up_waits_for_as_many_as_it_was_told(untied: Served, tmp_path: Path) -> None:
    """And not only for those that held the model in its former life."""
    with running_cluster(tmp_path, untied.directory, workers=1) as cluster:
        assert cluster.layers() == {"w0": LAYERS}
        assert cluster.processes.stop() == {"up": 0}
    with running_cluster(tmp_path, untied.directory, workers=1, by_hand=["h0"]) as cluster:  # which comes after w0
        assert len(cluster.layers()) == 2 and all_layers(cluster) == LAYERS
        assert complete(cluster, untied.prompts[3], stream=True) == untied.answers[3]
