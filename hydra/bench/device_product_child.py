"""Both sides of G, in one process: a CUDA device multiplies one row by 4-bit matrices, and copies as many bytes.

The matrices are those of layers of an 8B Llama, more of them than a device's caches hold, and their products one
captured graph, as a decode step has them. A copy reads and writes, which is what a device's bandwidth is told by.
"""

import sys
from typing import Any

import torch
from torch import Tensor

from hydra.bench.child import say
from hydra.kernels.weights.encoded.encoded_linear import EncodedLinear
from hydra.kernels.weights.encoded.encoded_matrix import GroupedMatrix

SHAPES = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))  # rows and columns of a layer's matrices
GROUP = 128
LAYERS = 8
_REPEATS = 5  # of a round's graph, and of its copy


def measure_products(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Of each round: bytes per second of the products, and of the copy. The first one warms up."""
    random = torch.Generator(device).manual_seed(1)
    linears = [_linear(*shape, device, random) for _ in range(LAYERS) for shape in SHAPES]
    inputs = {columns: torch.randn(1, columns, device=device, dtype=torch.float16) for _, columns in SHAPES}
    n_bytes = sum(linear.n_bytes for linear in linears)
    graph = _captured(linears, inputs, device)
    origin = torch.empty(n_bytes // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(origin)
    found = []
    for number in range(rounds + 1):
        ours_s = _seconds(device, graph.replay)
        copy_s = _seconds(device, lambda: target.copy_(origin))
        if number:
            found.append({"ours_per_s": n_bytes / ours_s, "copied_per_s": 2 * origin.nbytes / copy_s})
    return found


def _linear(rows: int, columns: int, device: torch.device, random: torch.Generator) -> EncodedLinear:
    codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device=device, generator=random)
    scales = torch.rand(rows, columns // GROUP, device=device, generator=random).to(torch.float16)
    return EncodedLinear(GroupedMatrix(codes=codes, scales=scales, bits=4, group_columns=GROUP))


def _captured(linears: list[EncodedLinear], inputs: dict[int, Tensor], device: torch.device) -> torch.cuda.CUDAGraph:
    """Computed once before, so that what is compiled at a first call is not in the graph."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for linear in linears:
            linear(inputs[linear.matrix.columns])
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for linear in linears:
            linear(inputs[linear.matrix.columns])
    return graph


def _seconds(device: torch.device, act: Any) -> float:
    """Of one call, by the device's own clock."""
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    with torch.cuda.device(device):
        before.record()
        for _ in range(_REPEATS):
            act()
        after.record()
        after.synchronize()
    return float(before.elapsed_time(after)) / 1000 / _REPEATS


def device_product_child_main() -> None:
    say("ready")
    say(measure_products(torch.device(sys.argv[1]), int(sys.argv[2])))


if __name__ == "__main__":
    device_product_child_main()
