"""R on a CUDA device: half a model loaded, activated and stepped, and the most that torch's allocator held of it."""

import sys
from typing import Any

import attrs
import torch

from hydra.bench.child import say
from hydra.bench.load_child import order_for
from hydra.kernels.devices import peak_bytes
from hydra.kernels.runner import Runner
from hydra.protocol.batch import Batch, OpenRow, Run, int32
from hydra.protocol.ids import Attempt, Epoch, RouteId, RowId, StepId
from hydra.protocol.model_spec import Described
from hydra.protocol.sampling import GREEDY
from hydra.store.library import LocalLibrary

BLOCK_SIZE = 16
ROUTE, EPOCH = RouteId(1), Epoch(1, 1)


def measure(described: Described, device: str, prompt: int, tokens: int) -> dict[str, Any]:
    """Bytes: of the weights, of the KV blocks of one row, and of the allocator's peak."""
    spec = described.spec
    end_layer = spec.n_layers // 2
    order = attrs.evolve(order_for(described, spec.stored_dtype), end_layer=end_layer)
    n_blocks = -(-(prompt + tokens) // BLOCK_SIZE)
    runner = Runner(device, threads=1)
    facts = runner.load(order, lambda done, total: None)
    runner.activate(ROUTE, n_blocks)
    for step, (position, length) in enumerate([(0, prompt), *((prompt + i, 1) for i in range(tokens))]):
        batch = Batch(
            row=int32([0]),
            attempt=int32([0]),
            position=int32([position]),
            length=int32([length]),
            sample=int32([0]),
            new_blocks=int32([0]),
            tokens=int32([1] * length),
        )
        row = OpenRow(
            row=RowId(0),
            attempt=Attempt(0),
            params=GREEDY,
            blocks=list(range(n_blocks)),
            prompt_tokens=prompt,
            history_tokens=prompt,
        )
        run = Run(route=ROUTE, epoch=EPOCH, step=StepId(step + 1), batch=batch, rows=(row,), hidden=None)
        runner.collect(runner.launch(run))
    kv_bytes = n_blocks * BLOCK_SIZE * spec.kv_token_bytes(end_layer, spec.stored_dtype)
    return {"peak_bytes": peak_bytes(torch.device(device)), "weight_bytes": facts.weight_bytes, "kv_bytes": kv_bytes}


def main() -> None:
    say("ready")
    say(measure(LocalLibrary().describe(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))


if __name__ == "__main__":
    main()
