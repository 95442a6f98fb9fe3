"""R on a CUDA device: half a model loaded, activated and stepped, and the most that torch's allocator held of it."""

import sys
from typing import Any

import attrs
import torch

from hydra.bench.child import say
from hydra.bench.load_child import order_for
from hydra.bench.lone_route import LONE_BLOCK_SIZE, LONE_EPOCH, LONE_ROUTE
from hydra.kernels.devices import peak_bytes
from hydra.kernels.step.runner import Runner
from hydra.kernels.step.warmup import lone_batch, lone_row
from hydra.protocol.batch import Run
from hydra.protocol.ids import StepId
from hydra.protocol.model.model_spec import Described
from hydra.store.models.library import LocalLibrary


def measure_peak(described: Described, device: str, prompt: int, tokens: int) -> dict[str, Any]:
    """Bytes: of the weights, of the KV blocks of one row, and of the allocator's peak."""
    spec = described.spec
    end_layer = spec.n_layers // 2
    order = attrs.evolve(order_for(described, spec.stored_dtype), end_layer=end_layer)
    n_blocks = -(-(prompt + tokens) // LONE_BLOCK_SIZE)
    runner = Runner(device, threads=1)
    facts = runner.load(order, lambda done, total: None)
    runner.activate(LONE_ROUTE, n_blocks)
    row = lone_row(n_blocks, prompt)
    for step, (position, length) in enumerate([(0, prompt), *((prompt + i, 1) for i in range(tokens))]):
        run = Run(
            route=LONE_ROUTE,
            epoch=LONE_EPOCH,
            step=StepId(step + 1),
            batch=lone_batch(position, length),
            rows=(row,),
            hidden=None,
        )
        runner.collect(runner.launch(run))
    kv_bytes = spec.cache_size(0, end_layer, spec.stored_dtype).row_of(n_blocks * LONE_BLOCK_SIZE)
    return {"peak_bytes": peak_bytes(torch.device(device)), "weight_bytes": facts.weight_bytes, "kv_bytes": kv_bytes}


def peak_child_main() -> None:
    say("ready")
    say(measure_peak(LocalLibrary().describe(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))


if __name__ == "__main__":
    peak_child_main()
