"""The rest of the pipeline, in one thread: tiny published models, their description, and a driver of runners.

Plays the Broker (batches, block tables) and the StageLine (rows between steps); the store describes what transformers
has written.
"""

from pathlib import Path

import attrs
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hydra.kernels.step.runner import Runner
from hydra.protocol.batch import EMPTY, Batch, GrowingIds, OpenRow, Outcome, Run, int32
from hydra.protocol.ids import Attempt, Epoch, RouteId, RowId, StepId
from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.model.model_spec import Described, ModelSpec, TensorRange
from hydra.protocol.model.source import Directory
from hydra.protocol.sampling import GREEDY, SamplingParams
from hydra.store.models.library import LocalLibrary

LIBRARY = LocalLibrary()
ROUTE = RouteId(1)
EPOCH = Epoch(1, 1)
SIZES = {  # of a tiny model
    "vocab_size": 1003,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
}


@attrs.frozen(eq=False)
class Published:
    """A model directory, what it says of itself, and the reference that wrote it."""

    path: Path
    described: Described
    reference: PreTrainedModel

    @property
    def spec(self) -> ModelSpec:
        return self.described.spec

    @property
    def tensors(self) -> tuple[TensorRange, ...]:
        return self.described.tensors

    def ranges(self, first: int, end: int) -> tuple[TensorRange, ...]:
        return LIBRARY.slice_ranges(self.described, first, end)


def publish(path: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **config: object) -> Published:
    """A random Llama whose greedy choices are clear, saved in several shards."""
    torch.manual_seed(seed)
    reference = LlamaForCausalLM(LlamaConfig(**(SIZES | config))).eval().to(dtype)
    with torch.no_grad():
        for name, tensor in reference.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                tensor.uniform_(0.5, 1.5)
    reference.save_pretrained(path, max_shard_size="200KB")
    return Published(path, LIBRARY.describe(str(path)), reference)


def order(model: Published, first: int, end: int, **changes: object) -> LoadSlice:
    said = LoadSlice(
        route=ROUTE,
        epoch=EPOCH,
        spec=model.spec,
        dtype="float32",
        first_layer=first,
        end_layer=end,
        tensors=model.ranges(first, end),
        sources=(Directory(str(model.path)),),
        block_size=4,
        kv_memory_bytes=1 << 20,
    )
    return attrs.evolve(said, **changes)


def quiet(bytes_done: int, bytes_total: int) -> None:
    assert 0 < bytes_done <= bytes_total


@attrs.define(eq=False)
class Row:
    """One sequence as the Broker keeps it."""

    ids: list[int]
    blocks: list[int]
    params: SamplingParams = GREEDY
    prompt_tokens: int = 0
    history_tokens: int = 0
    done: int = 0  # tokens whose KV is in the pool

    def __attrs_post_init__(self) -> None:
        self.prompt_tokens = self.prompt_tokens or len(self.ids)
        self.history_tokens = len(self.ids)


class Pipeline:
    """Runners in a line, and a step through all of them."""

    def __init__(
        self,
        model: Published,
        cuts: tuple[int, ...] = (),
        *,
        device: str = "cpu",
        kv_blocks: int = 64,
        **changes: object,
    ) -> None:
        bounds = (0, *cuts, model.spec.n_layers)
        self.runners = [Runner(device, threads=1, dtypes=("float32", "bfloat16")) for _ in bounds[1:]]
        self.block_size = 4
        for runner, first, end in zip(self.runners, bounds, bounds[1:], strict=False):
            runner.load(order(model, first, end, **changes), quiet)
            runner.activate(ROUTE, kv_blocks)
        self.steps = 0

    def run(self, *parts: tuple[Row, int]) -> Outcome:
        """Computes so many more tokens of each row, and samples the rows that are then complete."""
        self.steps += 1
        rows, lengths = [row for row, _ in parts], [length for _, length in parts]
        opened = tuple(
            OpenRow(
                row=RowId(number),
                attempt=Attempt(1),
                params=row.params,
                prompt_tokens=row.prompt_tokens,
                history_tokens=row.history_tokens,
                position=row.done + length,
                blocks=list(row.blocks[: -(-(row.done + length) // self.block_size)]),
                history=GrowingIds(int32(row.ids) if row.params.needs_history else EMPTY),
            )
            for number, (row, length) in enumerate(parts)
        )
        batch = Batch(
            row=int32(range(len(rows))),
            attempt=int32([1] * len(rows)),
            position=int32([row.done for row in rows]),
            length=int32(lengths),
            sample=int32([row.done + length == len(row.ids) for row, length in parts]),
            new_blocks=int32([0] * len(rows)),
            tokens=int32([token for row, length in parts for token in row.ids[row.done : row.done + length]]),
        )
        hidden, outcome = None, Outcome()
        for runner in self.runners:
            run = Run(route=ROUTE, epoch=EPOCH, step=StepId(self.steps), batch=batch, rows=opened, hidden=hidden)
            outcome = runner.collect(runner.launch(run))
            hidden = outcome.hidden
        for row, length in parts:
            row.done += length
        assert len(outcome.token) == int(batch.sample.sum())
        complete = [row for row in rows if row.done == len(row.ids)]
        for row, token in zip(complete, outcome.token.tolist(), strict=True):
            row.ids.append(token)
        return outcome

    def generate(self, row: Row, n: int, chunk: int = 1 << 20) -> list[int]:
        """Prefills in chunks, then decodes until the row has `n` new tokens."""
        first = len(row.ids)
        while len(row.ids) < first + n:
            self.run((row, min(chunk, len(row.ids) - row.done)))
        return row.ids[first:]


def prompt(seed: int, length: int, vocab: int = 1003) -> list[int]:
    return torch.randint(0, vocab, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def greedy(model: Published, ids: list[int], n: int) -> list[int]:
    """What transformers generates; asserts that no choice was a close one."""
    given = torch.tensor([ids])
    told = model.reference.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=n,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    for scores in told.scores:
        best = scores[0].topk(2).values
        assert best[0] - best[1] > 1e-3
    tokens = told.sequences[0, len(ids) :].tolist()
    assert len(tokens) == n
    return tokens
