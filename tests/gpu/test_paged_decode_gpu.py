"""The kernel for one token per row against the same spelled out, and captured steps against plain ones."""

import pytest
import torch

from hydra.kernels.attention.paged_attention import make_decode
from hydra.kernels.attention.paged_rows import PagedRows
from hydra.kernels.step.decode_graphs import SIZES
from tests.unit.kernels.bench import ROUTE, Pipeline, Row, greedy, prompt, publish
from tests.unit.kernels.test_decode_step import SpelledOut

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
DEVICE = torch.device("cuda:0")
CLEAR = (40, 42, 43, 44, 45, 46, 47, 48, 49, 50, 52, 54)  # seeds of prompts without a near tie in their answers
N_BLOCKS, BLOCK_SIZE = 700, 16
HEADS = [(32, 8, 128), (4, 1, 64), (5, 5, 80), (14, 2, 256), (6, 2, 24)]


@pytest.mark.parametrize(("softcap", "sink"), [(None, None), (20.0, None), (None, 3.0), (20.0, 3.0)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize(("n_heads", "n_kv_heads", "width"), HEADS)
@pytest.mark.parametrize("n_rows", [1, 3, 40])
def test_the_kernel_mixes_as_spelled_out(n_rows, n_heads, n_kv_heads, width, dtype, tolerance, softcap, sink):
    random = torch.Generator().manual_seed(n_rows)
    keys, values = (torch.randn(N_BLOCKS * BLOCK_SIZE, n_kv_heads, width, generator=random).to(dtype) for _ in range(2))
    heads = torch.randn(n_rows, n_heads + n_kv_heads, width, generator=random).to(dtype)
    query = heads[:, :n_heads]  # as it lies beside the keys
    reach = torch.randint(1, 300, (n_rows,), generator=random)
    reach[0] = 5000
    first = (reach * torch.rand(n_rows, generator=random) * 0.9).long()
    first[0] = 0
    table = torch.stack([torch.randperm(N_BLOCKS, generator=random)[:313] for _ in range(n_rows)]).to(torch.int32)
    sinks = None if sink is None else torch.randn(n_heads, generator=random) * sink
    mix = make_decode(0.3, softcap, None if sinks is None else sinks.to(DEVICE), dtype, DEVICE)
    there = [tensor.to(DEVICE) for tensor in (heads, keys, values, table, reach, first)]
    made = mix(there[0][:, :n_heads], there[1], there[2], PagedRows(*there[3:], BLOCK_SIZE)).cpu().float()
    spelled = SpelledOut(0.3, softcap, [], sinks)
    rows = PagedRows(table, reach, first, BLOCK_SIZE)
    expected = spelled(query.float(), keys.float(), values.float(), rows)
    assert float((made - expected).abs().max() / expected.abs().max()) < tolerance


@pytest.mark.parametrize("softcap", [None, 20.0])
@pytest.mark.parametrize(("n_heads", "n_kv_heads", "width"), HEADS)
def test_the_kernel_sees_nothing_that_its_row_has_not_written(n_heads, n_kv_heads, width, softcap):
    """Each row has blocks of its own; with NaN before `first` and from `reach` on, no bit is another."""
    random = torch.Generator().manual_seed(7)
    table = torch.randperm(N_BLOCKS, generator=random)[:500].view(5, 100).to(torch.int32)
    reach = torch.randint(1, 100 * BLOCK_SIZE, (5,), generator=random)
    first = (reach * torch.rand(5, generator=random) * 0.9).long()
    query = torch.randn(5, n_heads, width, generator=random)
    written = torch.randn(2, N_BLOCKS * BLOCK_SIZE, n_kv_heads, width, generator=random)
    seen = torch.zeros(N_BLOCKS * BLOCK_SIZE, dtype=torch.bool)
    for blocks, low, high in zip(table, first.tolist(), reach.tolist(), strict=True):
        at = torch.arange(low, high)
        seen[blocks[at // BLOCK_SIZE].long() * BLOCK_SIZE + at % BLOCK_SIZE] = True
    mix = make_decode(0.3, softcap, None, torch.float32, DEVICE)
    rows = PagedRows(table.to(DEVICE), reach.to(DEVICE), first.to(DEVICE), BLOCK_SIZE)
    answers = []
    for fill in (0.0, float("nan")):
        keys, values = (torch.where(seen[:, None, None], held, fill).to(DEVICE) for held in written)
        answers.append(mix(query.to(DEVICE), keys, values, rows).cpu())
    assert torch.equal(*answers) and torch.isfinite(answers[0]).all()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return publish(tmp_path_factory.mktemp("graphs"), seed=1, tie_word_embeddings=False)


def test_captured_steps_of_any_number_of_rows(model):
    """Rows begin one after the other and end so too: every number up to twelve comes by, and none disturbs another."""
    line = Pipeline(model, (2,), device="cuda:0", kv_blocks=12 * 24)
    assert all(runner._routes[ROUTE].graphs is not None for runner in line.runners)
    rows = [Row(prompt(s, 3 + i), list(range(24 * i, 24 * i + 24))) for i, s in enumerate(CLEAR)]
    expected = [greedy(model, list(row.ids), 40) for row in rows]
    for row in rows:
        line.run((row, len(row.ids)))
        begun = [other for other in rows if other.done]
        line.run(*((other, 1) for other in begun))
    while unfinished := [row for row in rows if len(row.ids) < row.prompt_tokens + 40]:
        line.run(*((row, 1) for row in unfinished))
    assert [row.ids[row.prompt_tokens :][:40] for row in rows] == expected


def test_more_rows_than_are_captured(model):
    line = Pipeline(model, (2,), device="cuda:0", kv_blocks=(SIZES[-1] + 1) * 3)
    rows = [Row(prompt(100 + i, 2), list(range(3 * i, 3 * i + 3))) for i in range(SIZES[-1] + 1)]
    line.run(*((row, 2) for row in rows))
    for _ in range(4):
        line.run(*((row, 1) for row in rows))
    for row in rows[:: SIZES[-1] // 3]:
        alone = Row(row.ids[:2], row.blocks)
        assert Pipeline(model, (2,), device="cuda:0", kv_blocks=400).generate(alone, 5) == row.ids[2:]
