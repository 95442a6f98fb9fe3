"""Rows that outgrow the original context of a long rope while they are answered, and while a worker dies."""

import os
import signal
from pathlib import Path

import pytest

from tests.e2e.cluster import running_cluster
from tests.e2e.served import all_at_once, complete, save_long_rope, wait_whole, with_answers

ORIGINAL_TOKENS = 40
LENGTHS = (3, 20, 37, 39, 40, 41, 70)  # before the switch, about it, and beyond it


@pytest.mark.long
def test_a_row_goes_over_the_switch_of_its_rope_as_in_transformers(tmp_path: Path) -> None:
    directory = tmp_path / "phi3"
    phi3 = with_answers(directory, save_long_rope(directory, ORIGINAL_TOKENS), LENGTHS)
    with running_cluster(tmp_path, directory, workers=2) as cluster:
        assert complete(cluster, phi3.prompts[0], stream=False) == phi3.answers[0]
        assert all_at_once(cluster, phi3) == phi3.answers
        pid = cluster.pid_of_node("w1")
        assert all_at_once(cluster, phi3, during=lambda: os.kill(pid, signal.SIGKILL)) == phi3.answers
        wait_whole(cluster, 2)
