"""One stage's arithmetic with nothing around it: the product's own kernels on full micro-batches, over and over.

It takes as many cohorts of rows in turn as the measured pipeline has, so that their keys and values are as far away.
Run as a child process: `free_stage DIRECTORY FIRST END ROWS COHORTS`. Each line, a number of seconds, is answered with
steps per second.
"""

import sys
import time
from pathlib import Path

from hydra.bench.child import say
from hydra.bench.inner_cluster import PROMPT_TOKENS
from hydra.bench.lone_route import LONE_BLOCK_SIZE, LONE_EPOCH, LONE_ROUTE
from hydra.kernels.step.runner import Runner
from hydra.protocol.batch import Batch, OpenRow, Run, int32
from hydra.protocol.blob import Blob
from hydra.protocol.ids import Attempt, RowId, StepId
from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.sampling import GREEDY
from hydra.store.models.library import LocalLibrary

AT = PROMPT_TOKENS + 16  # the position of a typical row in the measured pipeline


def free_stage_main() -> None:
    directory, first, end, rows, cohorts = Path(sys.argv[1]), *(int(value) for value in sys.argv[2:6])
    runner = Runner("cpu", threads=1)
    library = LocalLibrary()
    described = library.describe(str(directory))
    order = LoadSlice(
        route=LONE_ROUTE,
        epoch=LONE_EPOCH,
        spec=described.spec,
        dtype="float32",
        first_layer=first,
        end_layer=end,
        tensors=library.slice_ranges(described, first, end),
        sources=described.sources,
        block_size=LONE_BLOCK_SIZE,
        kv_memory_bytes=1 << 30,
    )
    runner.load(order, lambda done, total: None)
    row_blocks = -(-(AT + 1) // LONE_BLOCK_SIZE)
    runner.activate(LONE_ROUTE, cohorts * rows * row_blocks)
    hidden = None if first == 0 else described.spec.hidden
    runs: list[Run] = []
    for first_row in range(0, cohorts * rows, rows):
        numbers = range(first_row, first_row + rows)
        runner.collect(runner.launch(_full_batch(numbers, row_blocks, hidden, 0, AT)))  # fills the pool
        runs.append(_full_batch(numbers, row_blocks, hidden, AT, 1))
    for run in runs:
        runner.collect(runner.launch(run))
    say("ready")
    for line in sys.stdin:
        began_s, steps = time.perf_counter(), 0
        until_s = began_s + float(line)
        while time.perf_counter() < until_s:
            runner.collect(runner.launch(runs[steps % cohorts]))
            steps += 1
        say(steps / (time.perf_counter() - began_s))


def _full_batch(numbers: range, row_blocks: int, hidden: int | None, position: int, length: int) -> Run:
    """`length` tokens of every row from `position` on."""
    rows = len(numbers)
    ones = int32([1] * rows)
    batch = Batch(
        row=int32(list(numbers)),
        attempt=int32([0] * rows),
        position=int32([position] * rows),
        length=int32([length] * rows),
        sample=ones,
        new_blocks=int32([0] * rows),
        tokens=int32([7] * rows * length),
    )
    open_rows = tuple(
        OpenRow(
            row=RowId(number),
            attempt=Attempt(0),
            params=GREEDY,
            prompt_tokens=PROMPT_TOKENS,
            position=position + length,
            blocks=list(range(number * row_blocks, (number + 1) * row_blocks)),
        )
        for number in numbers
    )
    n_tokens = rows * length
    blob = None if hidden is None else Blob("float32", (n_tokens, hidden), bytes(4 * n_tokens * hidden))
    return Run(route=LONE_ROUTE, epoch=LONE_EPOCH, step=StepId(1), batch=batch, rows=open_rows, hidden=blob)


if __name__ == "__main__":
    free_stage_main()
