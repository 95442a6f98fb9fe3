"""A whole cluster as a user starts it, for the benchmarks that go through the front door."""

import http.client
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

import attrs

STOP_WITHIN_S = 20.0


@attrs.frozen
class Served:
    """`python -m hydra up`, ready."""

    host: str
    port: int

    def stream_s(self, prompt: list[int], n_tokens: int) -> list[float]:
        """When each token's event arrived, on our clock."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        body = {"model": self.model_id(), "prompt": prompt, "max_tokens": n_tokens, "stream": True}
        body |= {"temperature": 0, "ignore_eos": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {answer.read()[:500]!r}")
        arrived: list[float] = []
        while line := answer.readline():
            if line.startswith(b"data: {"):
                arrived.append(time.perf_counter())
                if b'"error"' in line:
                    raise RuntimeError(line.decode())
        connection.close()
        return arrived

    def status(self) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        connection.request("GET", "/api/cluster/status")
        content: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
        return content

    def model_id(self) -> str:
        return str(self.status()["models"][0]["model_id"])


@contextmanager
def served(model: Path, scratch: Path, *, workers: int, device: str, more: Sequence[str] = ()) -> Iterator[Served]:
    """Stopped at the end, whatever happens."""
    ports = {f"HYDRA_ZMQ_{name}_ADDR": "tcp://127.0.0.1:0" for name in ("ROUTER", "BROADCAST", "RESULTS", "STORE")}
    argv = [sys.executable, "-m", "hydra", "up", str(model), "--workers", str(workers), "--device", device]
    argv += ["--http", "127.0.0.1:0", "--state-dir", str(scratch / "state"), *more]
    env = {**os.environ, **ports, "HYDRA_LOG": "warning", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env, process_group=0) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("ready http://"):
                raise RuntimeError(f"the cluster did not come up: {line!r}")
            host, _, port = line.split()[1].removeprefix("http://").partition(":")
            yield Served(host, int(port))
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
