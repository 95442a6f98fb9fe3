"""Real processes, real torch, real signals, the official client: what a person would see."""

import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx2
import psutil
import pytest

from hydra.protocol.journal_story import LINES_MAX
from tests.e2e.cluster import RunningCluster, running_cluster
from tests.e2e.served import Served, all_at_once, complete, served, wait_whole

JSON = {"content-type": "application/json"}
SHORT = {(1, 2)}  # tied or not, workers; the cluster below is untied, of three
SPLITS = [
    pytest.param(workers, tied, id=f"{kind}-{workers}", marks=[] if (tied, workers) in SHORT else [pytest.mark.long])
    for tied, kind in enumerate(["untied", "tied"])
    for workers in (1, 2, 3, 4)
]


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return served(tmp_path_factory.mktemp("model"), tied=bool(request.param))


@pytest.mark.parametrize(("workers", "model"), SPLITS, indirect=["model"])
def test_every_split_answers_as_transformers_does(workers: int, model: Served, tmp_path: Path) -> None:
    directory, expected = model.directory, model.answers
    with running_cluster(tmp_path, directory, workers=workers) as cluster:
        nodes = cluster.status()["nodes"]
        assert {(node["device"], node["kernels"]) for node in nodes} == {("cpu", "torch")}
        stages = [stage for node in nodes for stage in node["stages"]]
        assert sorted(layer for s in stages for layer in range(s["first_layer"], s["end_layer"])) == list(range(6))
        assert len(stages) == workers
        assert [complete(cluster, prompt, stream=False) for prompt in model.prompts] == expected
        assert [complete(cluster, prompt, stream=True) for prompt in model.prompts[:3]] == expected[:3]
        assert all_at_once(cluster, model) == expected


@pytest.fixture(scope="module")
def cluster(untied: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster"), untied.directory, workers=3) as running:
        yield running


def stories(cluster: RunningCluster, pauses_s: dict[str, float]) -> list[str]:
    """Of each answer its last story: a few lines whose steps are the pause that its reader measured."""
    told = []
    for response_id, pause_s in pauses_s.items():
        url = f"{cluster.url}/api/events?session={response_id}"

        def is_over(url: str = url) -> bool:
            return "goes on" in httpx2.get(url).json()["stories"][-1][-1]["text"]

        cluster.wait_until("the journal has it", 10, is_over)
        story = httpx2.get(url).json()["stories"][-1]
        assert 3 <= len(story) <= LINES_MAX
        assert sum(line["step_s"] for line in story) == pytest.approx(pause_s, rel=0.1, abs=0.1), story
        told.append("\n".join(line["text"] for line in story))
    return told


@pytest.mark.parametrize("victim", ["w0", "w1", "w2"])
def test_a_killed_worker_costs_a_pause_and_not_a_token(victim: str, cluster: RunningCluster, untied: Served) -> None:
    wait_whole(cluster, 3)
    pid, pauses_s = cluster.pid_of_node(victim), {}
    kill = partial(os.kill, pid, signal.SIGKILL)
    assert all_at_once(cluster, untied, during=kill, pauses_s=pauses_s) == untied.answers
    wait_whole(cluster, 3)
    assert cluster.pid_of_node(victim) != pid
    told = stories(cluster, pauses_s)
    assert all(f"lost {victim} (" in text and "planned epoch" in text and "hold" in text for text in told)
    loss = cluster.status()["losses"][-1]
    assert loss["node_id"] == victim and loss["interrupted"] == len(pauses_s)
    assert cluster.metric("hydra_session_pause_seconds_count") >= len(pauses_s)


def test_a_killed_coordinator_costs_a_pause_and_not_a_token(cluster: RunningCluster, untied: Served) -> None:
    wait_whole(cluster, 3)
    pid, pauses_s = cluster.pid_of_role("coordinator"), {}
    kill = partial(os.kill, pid, signal.SIGKILL)
    assert all_at_once(cluster, untied, during=kill, pauses_s=pauses_s) == untied.answers
    assert cluster.pid_of_role("coordinator") != pid
    told = stories(cluster, pauses_s)
    assert all("the coordinator died (signal 9" in text and "began its term" in text for text in told)


def test_broken_input_is_told_so_with_all_four_keys(cluster: RunningCluster) -> None:
    wait_whole(cluster, 3)
    name = cluster.model_id()
    hello = [{"role": "user", "content": "hi"}]
    broken: list[tuple[str, object, int]] = [
        ("/v1/completions", b"{", 400),
        ("/v1/completions", b"[]", 400),
        ("/v1/chat/completions", {"model": name, "messages": []}, 400),
        ("/v1/chat/completions", {"model": name, "messages": "hi"}, 400),
        ("/v1/chat/completions", {"model": name, "messages": hello}, 400),  # this model has no chat template
        ("/v1/completions", {"model": "nobody", "prompt": "x"}, 404),
        ("/v1/completions", {"model": name, "prompt": [3] * 600}, 400),
        ("/v1/completions", {"model": name, "prompt": [5000]}, 400),
        ("/v1/completions", {"model": name, "prompt": "<3>", "temperature": "hot"}, 400),
        ("/v1/completions", {"model": name, "prompt": "<3>", "max_tokens": True}, 400),
        ("/v1/completions", {"model": name, "prompt": "<3>", "top_p": 7}, 400),
        ("/v1/completions", {"model": name}, 400),
        ("/nowhere", {}, 404),
    ]
    for path, body, status in broken:
        sent = {"content": body, "headers": JSON} if isinstance(body, bytes) else {"json": body}
        answer = httpx2.post(cluster.url + path, timeout=30.0, **sent)
        assert answer.status_code == status, (path, body, answer.text)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert "Traceback" not in answer.text


def test_a_stopped_worker_is_fenced_and_its_words_are_not_taken(untied: Served, tmp_path: Path) -> None:
    with running_cluster(tmp_path, untied.directory, workers=2) as cluster:
        pid = cluster.pid_of_node("w1")
        resumed = threading.Timer(7.0, os.kill, (pid, signal.SIGCONT))  # before its parent takes it for dead

        def stop() -> None:
            os.kill(pid, signal.SIGSTOP)
            resumed.start()

        assert all_at_once(cluster, untied, during=stop) == untied.answers
        resumed.join()
        cluster.wait_until(
            "a word of the old epoch refused", 20, lambda: cluster.metric("hydra_stale_dropped_total") > 0
        )
        wait_whole(cluster, 2)
        assert cluster.pid_of_node("w1") == pid
        assert complete(cluster, untied.prompts[3], stream=True) == untied.answers[3]


def test_ctrl_c_drains_and_leaves_nothing_behind(untied: Served, tmp_path: Path) -> None:
    with running_cluster(tmp_path, untied.directory, workers=2) as cluster:
        family = cluster.family()
        answers = all_at_once(cluster, untied, during=lambda: cluster.process.send_signal(signal.SIGINT))
        assert answers == untied.answers
        assert cluster.process.wait(40) == 0
        assert not [pid for pid in family if psutil.pid_exists(pid)]


def test_a_second_ctrl_c_stops_at_once(untied: Served, tmp_path: Path) -> None:
    """With status 0: who asked got what they asked for. A stream is cut, and says so by having no end."""
    body = {"prompt": [3], "max_tokens": 500, "temperature": 0, "ignore_eos": True, "stream": True}
    with running_cluster(tmp_path, untied.directory, workers=2, HYDRA_SERVER_DRAIN_TIMEOUT="60s") as cluster:
        family, seen = cluster.family(), 0
        asked = {**body, "model": cluster.model_id()}
        with httpx2.stream("POST", f"{cluster.url}/v1/completions", json=asked, timeout=60.0) as stream:
            with pytest.raises(httpx2.RemoteProtocolError):
                for line in stream.iter_lines():
                    seen += line.startswith("data: ")
                    if seen in (5, 10) and line:
                        cluster.process.send_signal(signal.SIGINT)
                    if seen == 5:
                        cluster.wait_until("it drains", 10, lambda: '"stopping"' in cluster.processes.messages())
            assert 10 <= seen < 500
        assert cluster.process.wait(10) == 0
        assert not [pid for pid in family if psutil.pid_exists(pid)]


def test_a_parent_that_is_killed_leaves_no_process(untied: Served, tmp_path: Path) -> None:
    with running_cluster(tmp_path, untied.directory, workers=2, HYDRA_SERVER_DRAIN_TIMEOUT="5s") as cluster:
        family = [pid for pid in cluster.family() if pid != cluster.process.pid]
        cluster.process.kill()
        cluster.process.wait()
        cluster.wait_until("no process is left", 20, lambda: not [pid for pid in family if psutil.pid_exists(pid)])
