"""Loads each slice of a model with a Runner of its own, and says what the reader counted and what the system did.

One JSON line per slice. `rchar` of /proc/self/io is every byte that this process took out of files, by whatever call.
"""

import json
import sys
from itertools import pairwise
from pathlib import Path

from hydra.kernels.step.runner import Runner
from hydra.protocol.ids import Epoch, RouteId
from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.model.source import Directory
from hydra.store.models.library import LocalLibrary


def system_bytes() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def main() -> None:
    directory, dtype, *cuts = sys.argv[1:]
    library = LocalLibrary()
    library.describe(directory)  # once more, so that what is imported on the way is not counted
    before = system_bytes()
    described = library.describe(directory)
    headers = system_bytes() - before
    bounds = [int(cut) for cut in cuts]
    for first, end in [(0, 1), *pairwise(bounds)]:
        tensors = library.slice_ranges(described, first, end)
        order = LoadSlice(
            route=RouteId(1),
            epoch=Epoch(1, 1),
            spec=described.spec,
            dtype=dtype,
            first_layer=first,
            end_layer=end,
            tensors=tensors,
            sources=(Directory(directory),),
            block_size=16,
            kv_memory_bytes=1 << 20,
        )
        runner = Runner("cpu", threads=1, dtypes=("float32", "bfloat16"))
        before = system_bytes()
        facts = runner.load(order, lambda done, total: None)
        counted = system_bytes() - before
        names = [tensor.name for tensor in tensors]
        print(json.dumps([facts.read_bytes, counted, sum(tensor.length for tensor in tensors), headers, names]))


if __name__ == "__main__":
    main()
