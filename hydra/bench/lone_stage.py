"""One stage of a route of its own, in this process: loaded, and given full micro-batches. What the children measure."""

import attrs

from hydra.bench.inner_cluster import PROMPT_TOKENS
from hydra.bench.lone_route import LONE_BLOCK_SIZE, LONE_EPOCH, LONE_ROUTE
from hydra.kernels.step.runner import Runner
from hydra.protocol.batch import Batch, OpenRow, Run, int32
from hydra.protocol.blob import Blob
from hydra.protocol.ids import Attempt, RowId, StepId
from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.model.model_spec import Described
from hydra.protocol.sampling import GREEDY
from hydra.store.models.library import LocalLibrary

AT = PROMPT_TOKENS + 16  # the position of a typical row in the measured pipeline
ROW_BLOCKS = -(-(AT + 1) // LONE_BLOCK_SIZE)


@attrs.frozen(eq=False)
class LoneStage:
    """Its `steps` are one token for each row, cohort after cohort, whose keys and values are as far apart as those of a
    pipeline that has as many.
    """

    runner: Runner
    steps: tuple[Run, ...]

    @classmethod
    def load(cls, described: Described, first: int, end: int, *, rows: int, cohorts: int) -> "LoneStage":
        """Layers [first, end) in float32, with one thread; each cohort of rows has had its prompt, and one token."""
        runner = Runner("cpu", threads=1)
        runner.load(_order(described, first, end), lambda done, total: None)
        runner.activate(LONE_ROUTE, cohorts * rows * ROW_BLOCKS)
        hidden = None if first == 0 else described.spec.hidden
        steps: list[Run] = []
        for first_row in range(0, cohorts * rows, rows):
            numbers = range(first_row, first_row + rows)
            runner.collect(runner.launch(_full_batch(numbers, hidden, 0, AT)))  # fills the pool
            steps.append(_full_batch(numbers, hidden, AT, 1))
        stage = cls(runner, tuple(steps))
        for number in range(cohorts):
            stage.step(number)
        return stage

    def step(self, number: int) -> None:
        self.runner.collect(self.runner.launch(self.steps[number % len(self.steps)]))


def _order(described: Described, first: int, end: int) -> LoadSlice:
    return LoadSlice(
        route=LONE_ROUTE,
        epoch=LONE_EPOCH,
        spec=described.spec,
        dtype="float32",
        first_layer=first,
        end_layer=end,
        tensors=LocalLibrary().slice_ranges(described, first, end),
        sources=described.sources,
        block_size=LONE_BLOCK_SIZE,
        kv_memory_bytes=1 << 30,
    )


def _full_batch(numbers: range, hidden: int | None, position: int, length: int) -> Run:
    """`length` tokens of every row from `position` on."""
    rows = len(numbers)
    batch = Batch(
        row=int32(list(numbers)),
        attempt=int32([0] * rows),
        position=int32([position] * rows),
        length=int32([length] * rows),
        sample=int32([1] * rows),
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
            blocks=list(range(number * ROW_BLOCKS, (number + 1) * ROW_BLOCKS)),
        )
        for number in numbers
    )
    n_tokens = rows * length
    blob = None if hidden is None else Blob("float32", (n_tokens, hidden), bytes(4 * n_tokens * hidden))
    return Run(route=LONE_ROUTE, epoch=LONE_EPOCH, step=StepId(1), batch=batch, rows=open_rows, hidden=blob)
