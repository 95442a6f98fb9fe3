"""A real cluster for tests: `python -m hydra up`, workers started by hand, and what can be seen of them."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai

from scenarios.processes import ROOT, Processes, processes


class RunningCluster:
    """What a test may do to a cluster. Every wait is a poll with a deadline on something that can be observed."""

    def __init__(self, processes: Processes, url: str) -> None:
        self.processes = processes
        self.process = processes.started["up"]
        self.url = url
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=90.0)

    def status(self) -> dict[str, Any]:
        content: dict[str, Any] = httpx2.get(f"{self.url}/api/cluster/status", timeout=30.0).json()
        return content

    def pid_of_node(self, node_id: str) -> int:
        return int(next(node["pid"] for node in self.status()["nodes"] if node["node_id"] == node_id))

    def pid_of_role(self, role: str) -> int:
        return int(next(p["pid"] for p in self.status()["processes"] if p["role"] == role))

    def metric(self, name: str) -> float:
        lines = httpx2.get(f"{self.url}/metrics", timeout=30.0).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    def model_id(self) -> str:
        return self.client.models.list().data[0].id

    def family(self) -> list[int]:
        """The parents and all that live under them."""
        return self.processes.family()

    def layers(self) -> dict[str, list[int]]:
        """Who computes what; spares are not in it."""
        stages = {node["node_id"]: node["stages"] for node in self.status()["nodes"]}
        return {name: [*range(s[0]["first_layer"], s[0]["end_layer"])] for name, s in stages.items() if s}

    def rebalance(self) -> None:
        answer = httpx2.post(f"{self.url}/api/cluster/rebalance", timeout=60.0)
        assert answer.status_code == 200, answer.text

    def wait_until(self, what: str, within_s: float, holds: Any) -> None:
        deadline_s = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < deadline_s, f"not within {within_s:.0f} s: {what}"
            os.sched_yield()
            time.sleep(0.05)


def environment() -> dict[str, str]:
    ports = {f"HYDRA_ZMQ_{key}_ADDR": "tcp://127.0.0.1:0" for key in ("ROUTER", "BROADCAST", "RESULTS", "STORE")}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # the audit hook is on it
    return {**os.environ, **ports, "HYDRA_LOG": "warning", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@contextmanager
def running_cluster(
    scratch: Path,
    model: Path | str | None = None,
    *,
    workers: int = 2,
    by_hand: Sequence[str] = (),
    more: Sequence[str] = (),
    program: Sequence[str] = ("hydra", "worker"),
    **env: str,
) -> Iterator[RunningCluster]:
    """Up and ready, with `workers` under `up` and those `by_hand` each under a parent of its own, started as `program`.

    Whatever is left of it at the end is killed; what the processes wrote is shown when a test fails.
    """
    with processes(scratch) as running:
        up = running.start_up(model, workers, *more, min_nodes=workers + len(by_hand), **env)
        for name in by_hand:
            running.start_worker(name, program=program)
        try:
            assert up.stdout is not None
            line = up.stdout.readline()
            assert line.startswith("ready http://"), f"up said {line!r}"
            cluster = RunningCluster(running, line.split()[1])
            cluster.family()
            yield cluster
            cluster.client.close()
        finally:
            print(running.messages()[-20_000:])


def sse_content(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
