"""A measuring process beside ours, spoken to in JSON lines."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs

from hydra.processes.huge_pages import huge_pages_env


@attrs.frozen
class Child:
    """Ask and be answered; it has nothing to do in between."""

    process: "subprocess.Popen[str]"
    greeting: list[Any] = attrs.field(factory=list)

    def hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a measuring process ended with {self.process.wait()}")
        return json.loads(line)

    def tell(self, asked: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()

    def ask(self, asked: Any) -> Any:
        self.tell(asked)
        return self.hear()


@contextmanager
def child(module: str, *args: object) -> Iterator[Child]:
    """Runs `python -m module args` with one thread, until the block ends; its first line is `greeting[0]`.

    With a worker's memory, so that both sides of a ratio have the same.
    """
    argv: Sequence[str] = [sys.executable, "-m", module, *(str(arg) for arg in args)]
    env = {**os.environ, **huge_pages_env(os.environ), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            started = Child(process)
            started.greeting.append(started.hear())
            yield started
        finally:
            process.kill()


def say(content: Any) -> None:
    """The child's side: one JSON line."""
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()
