"""A real cluster for tests: `python -m hydra up` as a child process, its pids, and the signals that hit them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil

ROOT = Path(__file__).parents[2]
READY_WITHIN_S = 60.0


class RunningCluster:
    """What a test may do to a cluster. Every wait is a poll with a deadline on something that can be observed."""

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self.process = process
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
        """The parent and all that live under it."""
        parent = psutil.Process(self.process.pid)
        return [parent.pid, *(child.pid for child in parent.children(recursive=True))]

    def wait_until(self, what: str, within_s: float, holds: Any) -> None:
        deadline_s = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < deadline_s, f"not within {within_s:.0f} s: {what}"
            os.sched_yield()
            time.sleep(0.05)


def environment() -> dict[str, str]:
    ports = {
        f"HYDRA_ZMQ_{key}_ADDR": "tcp://127.0.0.1:0" for key in ("ROUTER", "BROADCAST", "METRICS", "RESULTS", "STORE")
    }
    return {**os.environ, **ports, "HYDRA_LOG": "warning", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@contextmanager
def running_cluster(
    state_dir: Path, model: Path | str | None = None, *, workers: int = 2, more: Sequence[str] = (), **env: str
) -> Iterator[RunningCluster]:
    """Up and ready; whatever is left of it at the end is killed."""
    argv = [sys.executable, "-m", "hydra", "up", *([str(model)] if model else []), "--workers", str(workers)]
    argv += ["--device", "cpu", "--http", "127.0.0.1:0", "--state-dir", str(state_dir / "state"), *more]
    process = subprocess.Popen(
        argv, cwd=state_dir, env={**environment(), **env}, stdout=subprocess.PIPE, text=True, process_group=0
    )
    family: list[int] = []
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready http://"), f"up said {line!r}"
        cluster = RunningCluster(process, line.split()[1])
        family = cluster.family()
        yield cluster
        cluster.client.close()
        if process.poll() is None:
            family = cluster.family()
    finally:
        for pid in dict.fromkeys([*family, process.pid]):
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def sse_content(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
