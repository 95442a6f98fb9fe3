"""Both sides of L, in one process: a whole model loaded by a Runner, and its bytes read into one fresh buffer."""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from hydra.bench.child import say
from hydra.kernels.reader import THREADS
from hydra.kernels.runner import Runner
from hydra.protocol.ids import Epoch, RouteId
from hydra.protocol.messages import LoadSlice
from hydra.protocol.model_spec import Described
from hydra.store.library import LocalLibrary

PIECE_BYTES = 8 << 20  # the plain side's best


def load(described: Described) -> dict[str, Any]:
    """Everything between the order and the answer, packing apart; the weights are freed before this returns."""
    spec = described.spec
    runner = Runner("cpu", threads=1)
    order = LoadSlice(
        route=RouteId(1),
        epoch=Epoch(1, 1),
        spec=spec,
        dtype="float32",
        first_layer=0,
        end_layer=spec.n_layers,
        tensors=described.tensors,
        sources=(described.model_path,),
        block_size=16,
        kv_memory_bytes=1 << 20,
    )
    began_s = time.perf_counter()
    facts = runner.load(order, lambda done, total: None)
    took_s = time.perf_counter() - began_s - facts.pack_s
    return {"seconds": took_s, "pack_seconds": facts.pack_s, "bytes": facts.read_bytes}


def read_plainly(described: Described) -> dict[str, Any]:
    """The same bytes, in order, in large pieces; numpy asks the system for huge pages under a buffer of this size."""
    places = sorted(described.tensors, key=lambda tensor: (tensor.file, tensor.offset))
    total = sum(tensor.length for tensor in places)
    files = {name: os.open(Path(described.model_path) / name, os.O_RDONLY) for name in {t.file for t in places}}
    pieces: list[tuple[int, int, int, int]] = []  # file, where in it, where in the buffer, bytes
    at = 0
    for tensor in places:
        for done in range(0, tensor.length, PIECE_BYTES):
            size = min(PIECE_BYTES, tensor.length - done)
            pieces.append((files[tensor.file], tensor.offset + done, at, size))
            at += size
    began_s = time.perf_counter()
    buffer = np.empty(total, np.uint8).data

    def read(piece: tuple[int, int, int, int]) -> None:
        file, offset, start, size = piece
        while size:
            got = os.preadv(file, [buffer[start : start + size]], offset)
            if not got:
                raise EOFError(f"a weights file ended at {offset}")
            offset, start, size = offset + got, start + got, size - got

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, pieces))
    took_s = time.perf_counter() - began_s
    for file in files.values():
        os.close(file)
    return {"seconds": took_s, "bytes": total}


def main() -> None:
    described = LocalLibrary().describe(sys.argv[1])
    sides = {"load": load, "plain": read_plainly}
    say("ready")
    for line in sys.stdin:
        say(sides[json.loads(line)](described))


if __name__ == "__main__":
    main()
