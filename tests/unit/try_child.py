"""Tries model directories all the way: described, every layer loaded, words read, one chat rendered.

Each line of the input is a directory; each line of the output is what came of it: the refusal's code and message (both
null when it was taken), which step said it, the time and the CPU time it took, and how much resident memory is left
behind.
"""

import ctypes
import gc
import json
import os
import resource
import sys
import time
from pathlib import Path

from hydra.kernels.step.runner import Runner
from hydra.log.set_up import set_up_logging
from hydra.protocol.ids import Epoch, RouteId
from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.model.source import Directory
from hydra.protocol.refusal import RefusalError
from hydra.store.models.library import LocalLibrary
from hydra.text.tokenizer import ChatInput
from hydra.text.trial import load_tried

ROOM_BYTES = 3 << 30  # of address space: a bomb must not take the machine with it
LIBC = ctypes.CDLL(None)


def resident_bytes() -> int:
    """What cannot be given back: without garbage, and without what the C library keeps for the next time."""
    gc.collect()
    if hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_s() -> float:
    """Of this process and of those it has waited for."""
    return sum(os.times()[:4])


def steps(directory: str):
    """What happens to a model on its way to the first request, one step at a time."""
    library = LocalLibrary()
    yield "describe"
    found = library.describe(directory)
    yield "load"
    for layer in range(found.spec.n_layers):
        order = LoadSlice(
            route=RouteId(1),
            epoch=Epoch(1, 1),
            spec=found.spec,
            dtype="float32",
            first_layer=layer,
            end_layer=layer + 1,
            tensors=library.slice_ranges(found, layer, layer + 1),
            sources=(Directory(directory),),
            block_size=16,
            kv_memory_bytes=1 << 20,
        )
        Runner("cpu").load(order, lambda done, total: None)
    yield "words"
    words = load_tried(Path(directory))
    words.encode_prompt("Hello, world")
    yield "chat"
    words.encode_chat(ChatInput(messages=[{"role": "user", "content": "hi"}]))


def attempt(directory: str) -> dict[str, object]:
    done: list[str] = []
    refusal = None
    began_s, began_cpu_s = time.monotonic(), cpu_s()
    try:
        done.extend(steps(directory))
    except RefusalError as error:
        refusal = error.refusal
    wall_s, spent_cpu_s = time.monotonic() - began_s, cpu_s() - began_cpu_s
    return {
        "step": done[-1] if done else "nothing",
        "code": refusal and refusal.code,
        "message": refusal and refusal.message,
        "wall_s": wall_s,
        "cpu_s": spent_cpu_s,
        "resident_bytes": resident_bytes(),
    }


def main() -> None:
    attempt(sys.argv[1])  # a good one: imports, arenas and caches are made before anything is compared
    gc.collect()
    gc.freeze()  # what the imports made is not looked through after every attempt
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, used + ROOM_BYTES))
    print(json.dumps(attempt(sys.argv[1])), flush=True)
    for line in sys.stdin:
        print(json.dumps(attempt(line.rstrip("\n"))), flush=True)


if __name__ == "__main__":
    set_up_logging("try")
    main()
