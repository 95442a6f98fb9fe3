"""One stage's arithmetic with nothing around it: the product's own kernels on full micro-batches, over and over.

It takes as many cohorts of rows in turn as the measured pipeline has, so that their keys and values are as far away.
Run as a child process: `free_stage DIRECTORY FIRST END ROWS COHORTS`. Each line, a number of seconds, is answered with
steps per second.
"""

import sys
import time

from hydra.bench.child import say
from hydra.bench.lone_stage import LoneStage
from hydra.store.models.library import LocalLibrary


def free_stage_main() -> None:
    first, end, rows, cohorts = (int(value) for value in sys.argv[2:6])
    stage = LoneStage.load(LocalLibrary().describe(sys.argv[1]), first, end, rows=rows, cohorts=cohorts)
    say("ready")
    for line in sys.stdin:
        began_s, steps = time.perf_counter(), 0
        until_s = began_s + float(line)
        while time.perf_counter() < until_s:
            stage.step(steps)
            steps += 1
        say(steps / (time.perf_counter() - began_s))


if __name__ == "__main__":
    free_stage_main()
