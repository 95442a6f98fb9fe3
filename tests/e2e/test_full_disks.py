"""No room for the log and no room for the state: neither an answer nor a process is lost for that."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from scenarios.processes import Processes
from tests.e2e.cluster import running_cluster
from tests.e2e.served import Served, all_at_once


@pytest.mark.long
def test_full_disks_cost_neither_an_answer_nor_a_process(
    untied: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "messages").symlink_to("/dev/full")  # what all of them write to standard error
    monkeypatch.setattr(Processes, "messages", lambda self: "")
    with running_cluster(tmp_path, untied.directory, workers=2) as cluster:
        shutil.rmtree(tmp_path / "state")
        (tmp_path / "state").write_text("no directory any more")
        worker, coordinator = cluster.pid_of_node("w0"), cluster.pid_of_role("coordinator")
        for victim in (worker, coordinator):
            assert (
                all_at_once(cluster, untied, during=lambda pid=victim: os.kill(pid, signal.SIGKILL)) == untied.answers
            )
        assert cluster.pid_of_role("coordinator") != coordinator
        assert cluster.metric('hydra_log_lines_lost_total{role="parent"}') > 0
        assert cluster.metric("hydra_state_unwritten") == 1
        cluster.process.send_signal(signal.SIGINT)
        assert cluster.process.wait(40) == 0
