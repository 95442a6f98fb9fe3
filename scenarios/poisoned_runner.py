"""A device that does not survive one token: when it is to be computed, the process kills itself with SIGKILL."""

import os
import signal
from pathlib import Path

from hydra.kernels.step.runner import Runner
from hydra.processes.child_spec import WorkerSpec
from hydra.protocol.batch import Run


class PoisonedRunner(Runner):
    """The product's own arithmetic until then. The last thing it does is to write its pid to the diary."""

    def __init__(self, spec: WorkerSpec, poison: int, diary: Path) -> None:
        super().__init__(spec.device, threads=spec.threads, memory_bytes=spec.memory_bytes)
        self._poison = poison
        self._diary = diary

    def launch(self, run: Run) -> object:
        if self._poison in run.batch.tokens:
            with self._diary.open("a") as diary:
                diary.write(f"{os.getpid()}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().launch(run)
