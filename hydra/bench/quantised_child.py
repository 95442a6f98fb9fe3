"""Both sides of QT, in one process of one thread: a model as it is published, and the same quantised while loaded.

Run as a child process: `quantised_child DIRECTORY QUANTIZE`. Each line, a number of steps, is answered with the seconds
that either side took for so many of one row.
"""

import os
import sys
import time

from hydra.bench.child import say
from hydra.bench.lone_stage import LoneStage
from hydra.kernels.native.library import native_library, promise_library
from hydra.log.set_up import set_up_logging
from hydra.processes.native_build import begin_native_build
from hydra.protocol.model.model_spec import Quantize
from hydra.protocol.model.quantised import quantised
from hydra.store.models.library import LocalLibrary


def quantised_child_main() -> None:
    set_up_logging("bench")
    promise_library(begin_native_build(os.environ))
    described = LocalLibrary().describe(sys.argv[1])
    quantize: Quantize = "int4" if sys.argv[2] == "int4" else "int8"
    n_layers = described.spec.n_layers
    stages = [
        LoneStage.load(one, 0, n_layers, rows=1, cohorts=1) for one in (quantised(described, quantize), described)
    ]
    library = native_library()
    say({"lanes": None if library is None else library.lanes})
    for line in sys.stdin:
        took_s: list[float] = []
        for stage in stages:
            began_s = time.perf_counter()
            for number in range(int(line)):
                stage.step(number)
            took_s.append(time.perf_counter() - began_s)
        say(took_s)


if __name__ == "__main__":
    quantised_child_main()
