"""The CUDA lane says what the CPU says: split or whole, with two steps in flight."""

import pytest
import torch

from tests.unit.kernels.bench import Pipeline, Row, greedy, prompt, publish

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return publish(tmp_path_factory.mktemp("gpu"), seed=1, tie_word_embeddings=False)


@pytest.fixture(autouse=True)
def full_float32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("cuts", [(), (2,), (1, 2, 3)])
def test_greedy_equals_the_cpu(model, cuts):
    ids = prompt(3, 11)
    tokens = Pipeline(model, cuts, device="cuda:0").generate(Row(list(ids), [9, 4, *range(20, 40)]), 48, chunk=4)
    assert tokens == greedy(model, ids, 48)


def test_two_steps_in_flight_keep_apart(model):
    """Both prefills are launched before either is collected; their outcomes are those of running one by one."""
    line, runs = Pipeline(model, (2,), device="cuda:0"), []
    runner = line.runners[0]
    launch = runner.launch
    runner.launch = lambda run: runs.append(run) or launch(run)
    for seed, blocks in ((5, [1, 2, 3]), (6, [4, 5, 6])):
        line.run((Row(prompt(seed, 9), blocks), 9))
    alone = [bytes(runner.collect(launch(run)).hidden.data) for run in runs]
    tickets = [launch(run) for run in runs]
    assert [bytes(runner.collect(ticket).hidden.data) for ticket in tickets] == alone
    assert len(alone) == 2
    assert alone[0] != alone[1]
