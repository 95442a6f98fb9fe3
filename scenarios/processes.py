"""The real processes of a cluster: `up`, and workers started by hand. Starts them, names them, leaves none behind.

What they write to standard error lands in one file of the scratch directory. Refuses to know what is asked of them.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import attrs
import psutil

from hydra.processes.held_port import HeldPort
from hydra.protocol.loopback import LOOPBACK

ROOT = Path(__file__).parents[1]
STOP_WITHIN_S = 40.0


def hold_port() -> HeldPort:
    """On loopback."""
    return HeldPort.take(LOOPBACK)


@attrs.frozen(kw_only=True)
class Ports:
    """Where the coordinator of a cluster listens, all on loopback."""

    router: HeldPort = attrs.field(factory=hold_port)
    broadcast: HeldPort = attrs.field(factory=hold_port)
    results: HeldPort = attrs.field(factory=hold_port)

    def environment(self) -> dict[str, str]:
        return {
            "HYDRA_ZMQ_ROUTER_ADDR": f"tcp://{LOOPBACK}:{self.router.port}",
            "HYDRA_ZMQ_BROADCAST_ADDR": f"tcp://{LOOPBACK}:{self.broadcast.port}",
            "HYDRA_ZMQ_RESULTS_ADDR": f"tcp://{LOOPBACK}:{self.results.port}",
            "HYDRA_ZMQ_STORE_ADDR": f"tcp://{LOOPBACK}:0",
        }


@attrs.define(eq=False)
class Processes:
    """Of one cluster. The names are those of the nodes; "up" is the parent of the coordinator and the frontend."""

    scratch: Path
    ports: Ports = attrs.field(factory=Ports)
    started: dict[str, "subprocess.Popen[str]"] = attrs.field(factory=dict, init=False)
    held: list[HeldPort] = attrs.field(factory=list, init=False)  # other ports that some of them listen at
    within: Mapping[str, Sequence[str]] = MappingProxyType({})  # words that start a program elsewhere, by its name
    _known: list[psutil.Process] = attrs.field(factory=list, init=False)

    def start_up(
        self, model: Path | str | None, workers: int, *more: str, min_nodes: int = 0, **env: str
    ) -> "subprocess.Popen[str]":
        """`python -m hydra up`, with the random model where none is given; its ready line can be read from its
        standard output.
        """
        served = [str(model)] if model else ["--built-in", "random"]
        argv = ["-m", "hydra", "up", *served, "--workers", str(workers), "--device", "cpu"]
        argv += ["--http", f"{LOOPBACK}:0", "--state-dir", str(self.scratch / "state"), *more]
        return self._start(
            "up", argv, {"HYDRA_CLUSTER_MIN_NODES": str(min_nodes), **env}, subprocess.PIPE, self.scratch
        )

    def start_worker(
        self,
        name: str,
        *more: str,
        program: Sequence[str] = ("hydra", "worker"),
        cwd: Path | None = None,
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`python -m hydra worker`, or another program with its options, which joins this cluster."""
        argv = ["-m", *program, "--node-id", name, "--device", "cpu", "--threads", "1", "--memory-gb", "2"]
        if "--coordinator" not in more:
            argv += ["--coordinator", f"tcp://{LOOPBACK}:{self.ports.router.port}"]
            argv += ["--broadcast", f"tcp://{LOOPBACK}:{self.ports.broadcast.port}"]
        if "--pipeline-port" not in more:
            argv += ["--pipeline-port", "0"]
        self._start(name, [*argv, *more], env, subprocess.DEVNULL, cwd or self.scratch)

    def family(self) -> list[int]:
        """The pids of all that were started and of all that live under them."""
        members: list[psutil.Process] = []
        for process in self.started.values():
            if process.poll() is None:
                parent = psutil.Process(process.pid)
                members += [parent, *parent.children(recursive=True)]
        self._known += members
        return [member.pid for member in members]

    def kill(self, name: str) -> None:
        """Whoever was started under that name, and all that live under it."""
        self.family()
        process = self.started[name]
        if process.poll() is None:
            parent = psutil.Process(process.pid)
            for one in [parent, *parent.children(recursive=True)]:
                one.kill()
            process.wait()

    def kill_all(self) -> None:
        """Whoever is left, those that lost their parent among them as far as `family` ever saw them."""
        self.family()
        for process in dict.fromkeys(self._known):
            with suppress(psutil.NoSuchProcess):  # gone, or a stranger with the same pid
                process.kill()
        for started in self.started.values():
            started.wait()
            if started.stdout is not None:
                started.stdout.close()
        psutil.wait_procs(self._known, timeout=STOP_WITHIN_S)

    def stop(self) -> dict[str, int]:
        """Ctrl-C: first for `up`, whose streams drain, then for the others. Returns their exit statuses by name.

        Raises subprocess.TimeoutExpired when one does not end.
        """
        for name in sorted(self.started, key=lambda name: name != "up"):
            process = self.started[name]
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.wait(STOP_WITHIN_S)
        return {name: process.returncode for name, process in self.started.items()}

    def messages(self) -> str:
        """What they wrote to standard error."""
        path = self.scratch / "messages"
        return path.read_text(errors="replace") if path.exists() else ""

    def _start(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], stdout: int, cwd: Path
    ) -> "subprocess.Popen[str]":
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        ours = {"HYDRA_LOG": "info", "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **self.ports.environment(), **env}
        with (self.scratch / "messages").open("a") as messages:
            process = subprocess.Popen(
                [*self.within.get(name, ()), sys.executable, *argv],
                cwd=cwd,
                env={**os.environ, **ours},
                stdout=stdout,
                stderr=messages,
                text=True,
                process_group=0,  # a Ctrl-C at the terminal is for whoever tells the story, which then stops these
            )
        self.started[name] = process
        return process


@contextmanager
def processes(
    scratch: Path, ports: Ports | None = None, within: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> Iterator[Processes]:
    """Whatever is left of them at the end is killed."""
    made = Processes(scratch, ports or Ports(), within=within)
    try:
        yield made
    finally:
        made.kill_all()
