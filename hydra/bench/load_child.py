"""Both sides of L, in one process: a whole model loaded by a Runner, and its bytes read into one fresh buffer.

On a device that buffer is the device's, and what was read is copied there piece by piece, each thread waiting for its
own copies out of one pinned piece: what one would write who has no slabs that take turns.
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import attrs
import numpy as np
import torch

from hydra.bench.child import say
from hydra.bench.lone_route import LONE_BLOCK_SIZE, LONE_EPOCH, LONE_ROUTE
from hydra.kernels.step.runner import Runner
from hydra.kernels.weights.reader import READ_THREADS
from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.model.dtype import Dtype
from hydra.protocol.model.model_spec import Described
from hydra.store.models.library import LocalLibrary

PIECE_BYTES = 8 << 20  # the plain side's best


def order_for(described: Described, dtype: Dtype) -> LoadSlice:
    """All of a model."""
    spec = described.spec
    return LoadSlice(
        route=LONE_ROUTE,
        epoch=LONE_EPOCH,
        spec=spec,
        dtype=dtype,
        first_layer=0,
        end_layer=spec.n_layers,
        tensors=described.tensors,
        sources=described.sources,
        block_size=LONE_BLOCK_SIZE,
        kv_memory_bytes=1 << 20,
    )


def load_timed(described: Described, device: str, dtype: Dtype) -> dict[str, Any]:
    """Everything between the order and the answer, packing apart; the weights are freed before this returns."""
    runner, order = Runner(device, threads=1), order_for(described, dtype)
    began_s = time.perf_counter()
    facts = runner.load(order, lambda done, total: None)
    took_s = time.perf_counter() - began_s - facts.pack_s
    runner.drop(order.route)
    return {"seconds": took_s, "pack_seconds": facts.pack_s, "bytes": facts.read_bytes}


def read_plainly(described: Described, device: str, _: Dtype) -> dict[str, Any]:
    """The same bytes, in order, in large pieces."""
    places = sorted(described.tensors, key=lambda tensor: (tensor.file, tensor.offset))
    total = sum(tensor.length for tensor in places)
    files = {name: os.open(Path(described.model_path) / name, os.O_RDONLY) for name in {t.file for t in places}}
    pieces: list[_Piece] = []
    at = 0
    for tensor in places:
        for done in range(0, tensor.length, PIECE_BYTES):
            size = min(PIECE_BYTES, tensor.length - done)
            pieces.append(_Piece(files[tensor.file], tensor.offset + done, at, size))
            at += size
    began_s = time.perf_counter()
    if device == "cpu":
        _read_to_memory(pieces, total)
    else:
        _read_to_device(device, pieces, total)
    took_s = time.perf_counter() - began_s
    for file in files.values():
        os.close(file)
    return {"seconds": took_s, "bytes": total}


@attrs.frozen
class _Piece:
    file: int
    offset: int
    place: int  # where in the buffer
    size: int

    def read(self, memory: memoryview) -> None:
        done = 0
        while done < self.size:
            got = os.preadv(self.file, [memory[done : self.size]], self.offset + done)
            if not got:
                raise EOFError(f"a weights file ended at {self.offset + done}")
            done += got


def _read_to_memory(pieces: list[_Piece], total: int) -> None:
    """numpy asks the system for huge pages under a buffer of this size."""
    buffer = np.empty(total, np.uint8).data
    with ThreadPoolExecutor(READ_THREADS) as pool:
        list(pool.map(lambda piece: piece.read(buffer[piece.place :]), pieces))


def _read_to_device(device: str, pieces: list[_Piece], total: int) -> None:
    buffer = torch.empty(total, dtype=torch.uint8, device=device)
    shares = [pieces[first::READ_THREADS] for first in range(READ_THREADS)]

    def read(share: list[_Piece]) -> None:
        pinned = torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=True)
        memory = pinned.numpy().data
        for piece in share:
            piece.read(memory)
            buffer[piece.place : piece.place + piece.size].copy_(pinned[: piece.size])

    with ThreadPoolExecutor(READ_THREADS) as pool:
        list(pool.map(read, shares))
    torch.cuda.synchronize(device)


def load_child_main() -> None:
    described = LocalLibrary().describe(sys.argv[1])
    device, dtype = sys.argv[2], cast(Dtype, sys.argv[3])
    sides = {"load": load_timed, "plain": read_plainly}
    say("ready")
    for line in sys.stdin:
        say(sides[json.loads(line)](described, device, dtype))


if __name__ == "__main__":
    load_child_main()
