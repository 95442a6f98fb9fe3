"""The decoder, split over stages and batched raggedly, draws the tokens that transformers draws."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hydra.kernels.step.runner import Runner
from hydra.protocol.batch import Batch, OpenRow, Run, int32
from hydra.protocol.ids import Attempt, Epoch, RouteId, RowId, StepId
from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.sampling import GREEDY, SamplingParams
from hydra.store.models.library import LocalLibrary

ROUTE, EPOCH = RouteId(1), Epoch(1, 1)
BLOCK = 4


def save_model(directory: Path, *, tied: bool, seed: int = 7, layers: int = 6) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=1003,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(directory, max_shard_size="400KB")
    return model


class Line:
    """Plays Broker and StageLine over a row of runners."""

    def __init__(self, directory: Path, cuts: Sequence[int], blocks: int = 64) -> None:
        library = LocalLibrary()
        described = library.describe(str(directory))
        self.runners: list[Runner] = []
        self.facts = []
        bounds = [0, *cuts, described.spec.n_layers]
        for first, end in pairwise(bounds):
            runner = Runner("cpu", threads=1)
            order = LoadSlice(
                route=ROUTE,
                epoch=EPOCH,
                spec=described.spec,
                dtype="float32",
                first_layer=first,
                end_layer=end,
                tensors=library.slice_ranges(described, first, end),
                sources=described.sources,
                block_size=BLOCK,
                kv_memory_bytes=1 << 24,
            )
            self.facts.append(runner.load(order, lambda done, total: None))
            runner.activate(ROUTE, blocks)
            self.runners.append(runner)
        self.free = list(range(blocks))
        self.step = 0

    def run(self, work: Sequence[tuple[OpenRow, Sequence[int], bool]], *, scatter: bool = False) -> list[int]:
        for row, tokens, _ in work:
            row.position += len(tokens)
            while len(row.blocks) * BLOCK < row.position:
                row.blocks.append(self.free.pop(-1 if scatter and len(row.blocks) % 2 else 0))
            if row.params is not None and row.params.needs_history:
                row.history.extend(int32(tokens[max(0, len(row.history) - (row.position - len(tokens))) :]))
        self.step += 1
        batch = Batch(
            row=int32([row.row for row, _, _ in work]),
            attempt=int32([0] * len(work)),
            position=int32([row.position - len(tokens) for row, tokens, _ in work]),
            length=int32([len(tokens) for _, tokens, _ in work]),
            sample=int32([int(wanted) for _, _, wanted in work]),
            tokens=int32([token for _, tokens, _ in work for token in tokens]),
        )
        hidden = None
        for runner in self.runners:
            rows = tuple(row for row, _, _ in work)
            run = Run(route=ROUTE, epoch=EPOCH, step=StepId(self.step), batch=batch, rows=rows, hidden=hidden)
            outcome = runner.collect(runner.launch(run))
            hidden = outcome.hidden
        return outcome.token.tolist()


def open_row(number: int, params: SamplingParams, prompt: Sequence[int]) -> OpenRow:
    return OpenRow(
        row=RowId(number), attempt=Attempt(0), params=params, prompt_tokens=len(prompt), history_tokens=len(prompt)
    )


def reference(model: LlamaForCausalLM, prompt: Sequence[int], n: int) -> list[int]:
    """Greedy ids, and a check that no step was a near tie."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(n):
            top = model(torch.tensor([ids])).logits[0, -1].topk(2)
            assert float(top.values[0] - top.values[1]) > 1e-3, "choose another seed: this run has a near tie"
            ids.append(int(top.indices[0]))
    return ids[len(prompt) :]


PROMPTS = [[5, 17, 900, 3], [44], list(range(100, 121)), [7, 7, 7, 8, 9, 1000, 1002]]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("cuts", [(), (3,), (1, 4), (1, 2, 5)])
def test_ragged_batches_over_stages_equal_transformers(tmp_path: Path, tied: bool, cuts: tuple[int, ...]) -> None:
    model = save_model(tmp_path, tied=tied)
    line = Line(tmp_path, cuts)
    rows = [open_row(i, GREEDY, prompt) for i, prompt in enumerate(PROMPTS)]
    drawn = [[token] for token in line.run([(row, p, True) for row, p in zip(rows, PROMPTS, strict=True)])]
    for _ in range(11):
        tokens = line.run([(row, seen[-1:], True) for row, seen in zip(rows, drawn, strict=True)])
        for seen, token in zip(drawn, tokens, strict=True):
            seen.append(token)
    assert drawn == [reference(model, prompt, 12) for prompt in PROMPTS]


@pytest.mark.parametrize("cuts", [(), (3,)])
def test_a_stored_head_counts_more_than_a_tied_flag(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    """As transformers finds when it loads the directory."""
    untied = save_model(tmp_path, tied=False)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    loaded = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.tie_word_embeddings and torch.equal(loaded.lm_head.weight, untied.lm_head.weight)
    line, row = Line(tmp_path, cuts), open_row(0, GREEDY, PROMPTS[0])
    drawn = line.run([(row, PROMPTS[0], True)])
    for _ in range(11):
        drawn += line.run([(row, drawn[-1:], True)])
    assert drawn == reference(loaded, PROMPTS[0], 12)


def test_a_prompt_in_chunks_over_scattered_blocks_equals_one_prefill(tmp_path: Path) -> None:
    save_model(tmp_path, tied=False)
    prompt = list(range(200, 230))
    whole, chunked = Line(tmp_path, (2,)), Line(tmp_path, (2,))
    one = open_row(1, GREEDY, prompt)
    expected = whole.run([(one, prompt, True)])
    row = open_row(1, GREEDY, prompt)
    assert chunked.run([(row, prompt[:7], False)], scatter=True) == []
    assert chunked.run([(row, prompt[7:8], False)], scatter=True) == []
    assert chunked.run([(row, prompt[8:], True)], scatter=True) == expected
    assert row.blocks != sorted(row.blocks)


def test_seeded_sampling_does_not_depend_on_batch_or_replay(tmp_path: Path) -> None:
    save_model(tmp_path, tied=False)
    params = SamplingParams(temperature=0.9, top_k=50, top_p=0.95, min_p=0.01, seed=11, frequency_penalty=0.5)
    prompt = PROMPTS[0]

    def draw(line: Line, history: list[int], n: int, beside: Sequence[OpenRow] = ()) -> list[int]:
        row = open_row(9, params, prompt)
        drawn = [line.run([(row, history, True), *((other, [4], True) for other in beside)])[0]]
        while len(drawn) < n:
            drawn.append(line.run([(row, drawn[-1:], True), *((other, [4], True) for other in beside)])[0])
        return drawn

    alone = draw(Line(tmp_path, (3,)), prompt, 16)
    beside = [open_row(i, SamplingParams(seed=i), [4]) for i in range(3)]
    assert draw(Line(tmp_path, (3,)), prompt, 16, beside) == alone
    assert draw(Line(tmp_path, (1, 2)), [*prompt, *alone[:6]], 10) == alone[6:]
    other = SamplingParams(temperature=0.9, seed=12)
    assert len(set(alone)) > 3 and other.seed != params.seed


def test_a_stage_reads_only_its_own_bytes(tmp_path: Path) -> None:
    save_model(tmp_path, tied=False)
    described = LocalLibrary().describe(str(tmp_path))
    line = Line(tmp_path, (2, 4))
    read = [facts.read_bytes for facts in line.facts]
    bounds = [(0, 2), (2, 4), (4, 6)]
    assert read == [described.spec.slice_bytes(first, end, "float32") for first, end in bounds]
    assert sum(read) == described.spec.slice_bytes(0, 6, "float32")
