"""Both sides of Q16, in one process of one thread: 16 rows by encoded matrices, and by float32 ones of the same shape.

Each line, the name of a form, is answered with the seconds that either side took for all of its matrices, which are
together larger than a cache. The float32 side is the faster of what a route in float32 may use.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hydra.bench.child import say
from hydra.kernels.native.library import promise_library
from hydra.kernels.native.products import native_dense
from hydra.kernels.weights.encoded.encoded_linear import EncodedLinear
from hydra.kernels.weights.encoded.encoded_matrix import BlockMatrix, EncodedMatrix, Float8Matrix, GroupedMatrix
from hydra.kernels.weights.linear import NativeLinear, PlainLinear, make_linear
from hydra.log.set_up import set_up_logging
from hydra.processes.native_build import begin_native_build
from hydra.protocol.model.encoding import BLOCK_ENCODINGS

ROWS, SIDE, COPIES = 16, 2048, 4
GROUPED = {"int4": 4, "int8": 8}
BLOCKS = ("Q4_K", "Q5_K", "Q6_K", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "IQ4_XS")
FORMS = (*GROUPED, "nf4", "float8", *BLOCKS)
_SMALL = 60  # of a byte: numbers of float16 that begin so are small


def random_matrix(form: str, side: int) -> EncodedMatrix:
    """[side, side] of random codes."""
    if form in BLOCKS:
        encoding = BLOCK_ENCODINGS[form]
        row_bytes = encoding.n_bytes((1, side))
        return BlockMatrix(encoding=encoding, data=torch.randint(0, _SMALL, (side, row_bytes), dtype=torch.uint8))
    if form == "float8":
        codes = torch.randint(0, 120, (side, side), dtype=torch.uint8).view(torch.float8_e4m3fn)
        return Float8Matrix(codes=codes, scales=torch.rand(side // 128, side // 128), group_rows=128, group_columns=128)
    bits, scales = GROUPED.get(form, 4), torch.rand(side, side // 32).to(torch.float16)
    codes = torch.randint(0, 256, (side, side * bits // 8), dtype=torch.uint8)
    table = torch.randn(16).sort().values if form == "nf4" else None
    return GroupedMatrix(
        codes=codes.view(torch.int8) if bits == 8 else codes, scales=scales, bits=bits, group_columns=32, table=table
    )


def time_all(products: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> float:
    """Seconds."""
    began_s = time.perf_counter()
    for product in products:
        product(x)
    return time.perf_counter() - began_s


def rows_child_main() -> None:
    set_up_logging("bench")
    torch.set_num_threads(1)
    promise_library(begin_native_build(os.environ))
    dense = [torch.randn(SIDE, SIDE) for _ in range(COPIES)]
    plain: list[list[Callable[[Tensor], Tensor]]] = [
        [PlainLinear(one) for one in dense],
        [make_linear(one) for one in dense],
    ]
    own = [NativeLinear(one, form) for one in dense if (form := native_dense(one)) is not None]
    plain += [[*own]] if own else []
    linears = {form: [EncodedLinear(random_matrix(form, SIDE)) for _ in range(COPIES)] for form in FORMS}
    x = torch.randn(ROWS, SIDE)
    say({"forms": FORMS, "rows": ROWS})
    with torch.inference_mode():
        for line in sys.stdin:
            ours_s = time_all(linears[json.loads(line)], x)
            say([ours_s, min(time_all(products, x) for products in plain)])


if __name__ == "__main__":
    rows_child_main()
