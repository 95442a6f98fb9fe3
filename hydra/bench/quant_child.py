"""Both sides of Q, in one process of one thread: products of one row with encoded matrices, and their bytes read.

Together the matrices are several times as large as any cache, and each is used once a round. The two sides take turns
half by half, so that neither finds a matrix in a cache. Products are called as a decode step calls them.
"""

import json
import os
import sys
import time
from typing import Any

import torch

from hydra.bench.child import say
from hydra.kernels.native.library import NativeLibrary, native_library, promise_library
from hydra.kernels.native.program import ProgramBuilder, ProgramStep
from hydra.kernels.weights.encoded.encoded_matrix import GroupedMatrix
from hydra.kernels.weights.encoded.native_form import native_form
from hydra.log.set_up import set_up_logging
from hydra.processes.native_build import begin_native_build

ROWS, COLUMNS, GROUP = 4096, 4096, 32
TOTAL_BYTES = 192 << 20


def encoded_matrices(bits: int, total_bytes: int, rows: int = ROWS, columns: int = COLUMNS) -> list[GroupedMatrix]:
    """Random codes of 4 bits, or signed ones of 8, with a float16 scale to 32."""
    matrices: list[GroupedMatrix] = []
    while sum(matrix.n_bytes for matrix in matrices) < total_bytes:
        codes = torch.randint(0, 256, (rows, columns * bits // 8), dtype=torch.uint8)
        scales = torch.rand(rows, columns // GROUP).to(torch.float16)
        signed = codes if bits == 4 else codes.view(torch.int8)
        matrices.append(GroupedMatrix(codes=signed, scales=scales, bits=bits, group_columns=GROUP))
    return matrices


class Half:
    """Some of the matrices, multiplied by as in a decode step: a program in which each has a row of its input."""

    def __init__(self, matrices: list[GroupedMatrix], library: NativeLibrary) -> None:
        self.matrices, self._library = matrices, library
        builder = ProgramBuilder()
        row, answer = builder.buffer(matrices[0].columns), builder.buffer(matrices[0].rows)
        for matrix in matrices:
            native = native_form(matrix)
            assert native is not None
            builder.product(native, row, answer)
        self._program = builder.build(library)
        self._program.memory[row].normal_()
        nowhere = torch.zeros(1, 1, dtype=torch.int32)
        self._step = ProgramStep([], [], torch.zeros(1), torch.zeros(1), nowhere, 1)

    def multiply(self) -> None:
        self._program.run(1, self._step)

    def read(self) -> None:
        for matrix in self.matrices:
            for side in (matrix.codes, matrix.scales):
                self._library.read(side.data_ptr(), side.nbytes)


def time_round(halves: tuple[Half, Half]) -> dict[str, Any]:
    """Each matrix once by either side; the halves in turn."""
    ours_s = plain_s = 0.0
    for one, other in (halves, halves[::-1]):
        began_s = time.perf_counter()
        one.multiply()
        between_s = time.perf_counter()
        other.read()
        ours_s += between_s - began_s
        plain_s += time.perf_counter() - between_s
    n_bytes = sum(matrix.n_bytes for half in halves for matrix in half.matrices)
    return {"ours": ours_s, "plain": plain_s, "bytes": n_bytes}


def halves_of(matrices: list[GroupedMatrix], library: NativeLibrary) -> tuple[Half, Half]:
    behind = len(matrices) // 2
    return Half(matrices[:behind], library), Half(matrices[behind:], library)


def quant_child_main() -> None:
    set_up_logging("bench")
    torch.set_num_threads(1)
    promise_library(begin_native_build(os.environ))
    library = native_library()
    say({"lanes": None if library is None else library.lanes})
    sides = (
        {} if library is None else {bits: halves_of(encoded_matrices(bits, TOTAL_BYTES), library) for bits in (4, 8)}
    )
    for line in sys.stdin:
        say(time_round(sides[json.loads(line)]))


if __name__ == "__main__":
    quant_child_main()
