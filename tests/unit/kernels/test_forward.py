"""Slices in a line say what transformers says, however the model is cut and the batch is composed."""

import numpy as np
import pytest
import torch

from hydra.kernels.tensors import tensor_of
from hydra.protocol.batch import Batch, OpenRow, Run, int32
from hydra.protocol.ids import StepId
from hydra.protocol.sampling import SamplingParams
from tests.unit.kernels.bench import EPOCH, ROUTE, Pipeline, Row, greedy, prompt

FROM_0, FROM_20, FROM_40 = ([*range(a, a + 18)] for a in (0, 20, 40))
SCATTERED = [31, 7, 50, 3, 12, 44, 22, 9, 60, 1, 33, 18, 27, 41, 5, 14, 63, 0]


@pytest.mark.parametrize("cuts", [(), (2,), (1, 3), (1, 2, 3)])
@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_greedy_equals_transformers(kind, cuts, request):
    model = request.getfixturevalue(kind)
    ids = prompt(3, 11)
    assert Pipeline(model, cuts).generate(Row(ids, FROM_0), 48) == greedy(model, prompt(3, 11), 48)


def test_logits_equal_transformers(untied):
    """All 1003 log-probabilities of a prompt's next token, through two stages."""
    row = Row(prompt(4, 13), FROM_0, SamplingParams(temperature=0.0, logprobs=1003))
    told = Pipeline(untied, (2,)).run((row, 13)).logprobs
    with torch.inference_mode():
        logits = untied.reference(torch.tensor([prompt(4, 13)])).logits[0, -1]
    expected = logits.log_softmax(-1)
    assert sorted(told.top_ids[0].tolist()) == list(range(1003))
    np.testing.assert_allclose(told.top[0], expected[told.top_ids[0]].numpy(), atol=2e-4)
    assert told.chosen[0] == told.top[0, 0]


@pytest.mark.parametrize("chunk", [1, 3, 4, 7])
@pytest.mark.parametrize("blocks", [FROM_0, SCATTERED], ids=["run", "scattered"])
def test_chunked_prefill_equals_one_shot(untied, chunk, blocks):
    expected = greedy(untied, prompt(5, 17), 16)
    assert Pipeline(untied, (2,)).generate(Row(prompt(5, 17), blocks), 16, chunk) == expected


def test_ragged_batch_equals_rows_alone(tied):
    """A prefill, a later chunk and a decode share each step, on runs of blocks and scattered ones."""
    ids = [prompt(seed, length) for seed, length in ((6, 19), (7, 5), (8, 2))]
    expected = [greedy(tied, one, 24) for one in ids]
    line = Pipeline(tied, (1, 3))
    tables = (list(range(19, -1, -1)), [*FROM_20[:8], 39, 38], FROM_40[:9])
    rows = [Row(list(one), blocks) for one, blocks in zip(ids, tables, strict=True)]
    while any(len(row.ids) < len(one) + 24 for row, one in zip(rows, ids, strict=True)):
        parts = [
            (row, min(3 + number, len(row.ids) - row.done))
            for number, (row, one) in enumerate(zip(rows, ids, strict=True))
            if len(row.ids) < len(one) + 24
        ]
        line.run(*parts)
    assert [row.ids[len(one) :] for row, one in zip(rows, ids, strict=True)] == expected


def test_reused_blocks_are_written_over(untied):
    line = Pipeline(untied)
    line.generate(Row(prompt(9, 30), SCATTERED), 8)
    assert line.generate(Row(prompt(10, 9), SCATTERED), 16) == greedy(untied, prompt(10, 9), 16)


def test_bfloat16_route_reads_float32_files(untied):
    line = Pipeline(untied, (2,), dtype="bfloat16")
    row = Row(prompt(4, 13), FROM_0)
    outcome = line.run((row, 13))
    assert len(outcome.token) == 1
    hidden = line.runners[0].launch(_prefill(prompt(4, 13))).hidden
    assert hidden.dtype == "bfloat16"
    assert hidden.shape == (13, 64)
    with torch.inference_mode():
        expected = untied.reference(torch.tensor([prompt(4, 13)]), output_hidden_states=True).hidden_states[2][0]
    error = (tensor_of(hidden).float() - expected).norm() / expected.norm()
    assert 0 < error < 0.03


def test_a_batch_of_closings_computes_nothing(untied):
    line = Pipeline(untied, (2,))
    empty = Run(route=ROUTE, epoch=EPOCH, step=StepId(1), batch=Batch(closed=int32([3])), rows=(), hidden=None)
    hidden = line.runners[0].launch(empty).hidden
    assert hidden.shape == (0, 64)
    last = Run(route=ROUTE, epoch=EPOCH, step=StepId(1), batch=empty.batch, rows=(), hidden=hidden)
    assert len(line.runners[1].launch(last).token) == 0


def test_a_row_outside_its_blocks_is_a_fault(untied):
    line = Pipeline(untied)
    with pytest.raises(IndexError, match="has 1 blocks"):
        line.run((Row(prompt(1, 9), [0]), 9))


def test_wrong_hidden_shape_is_a_fault(untied):
    line = Pipeline(untied, (2,))
    with pytest.raises(ValueError, match="was given nothing"):
        line.runners[1].launch(_prefill(prompt(1, 3)))


def _prefill(ids: list[int]) -> Run:
    row = OpenRow(row=1, attempt=1, position=len(ids), blocks=FROM_20)
    batch = Batch(
        row=int32([1]), attempt=int32([1]), position=int32([0]), length=int32([len(ids)]), sample=int32([0]),
        new_blocks=int32([0]), tokens=int32(ids),
    )  # fmt: skip
    return Run(route=ROUTE, epoch=EPOCH, step=StepId(1), batch=batch, rows=(row,), hidden=None)
