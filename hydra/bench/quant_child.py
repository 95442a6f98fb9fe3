"""Both sides of Q, in one process of one thread: products of one row with encoded matrices, and their bytes read.

Together the matrices are several times as large as any cache, and each is used once a round. The two sides take turns
matrix by matrix, the one half of all matrices behind the other, so that neither finds one in a cache.
"""

import json
import os
import sys
import time
from typing import Any

import torch

from hydra.bench.child import say
from hydra.kernels.native.library import NativeLibrary, native_library, promise_library
from hydra.kernels.weights.encoded.encoded_linear import EncodedLinear
from hydra.kernels.weights.encoded.encoded_matrix import GroupedMatrix
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


def time_round(linears: list[EncodedLinear], library: NativeLibrary) -> dict[str, Any]:
    """Each matrix once by either side."""
    behind = len(linears) // 2
    row = torch.randn(1, linears[0].matrix.columns)
    ours_s = plain_s = 0.0
    for at, linear in enumerate(linears):
        other = linears[at - behind].matrix
        assert isinstance(other, GroupedMatrix)
        began_s = time.perf_counter()
        linear(row)
        between_s = time.perf_counter()
        for side in (other.codes, other.scales):
            library.read(side.data_ptr(), side.nbytes)
        ours_s += between_s - began_s
        plain_s += time.perf_counter() - between_s
    return {"ours": ours_s, "plain": plain_s, "bytes": sum(linear.matrix.n_bytes for linear in linears)}


def quant_child_main() -> None:
    set_up_logging("bench")
    torch.set_num_threads(1)
    promise_library(begin_native_build(os.environ))
    library = native_library()
    say({"lanes": None if library is None else library.lanes})
    sides = {bits: [EncodedLinear(matrix) for matrix in encoded_matrices(bits, TOTAL_BYTES)] for bits in (4, 8)}
    for line in sys.stdin:
        assert library is not None
        say(time_round(sides[json.loads(line)], library))


if __name__ == "__main__":
    quant_child_main()
