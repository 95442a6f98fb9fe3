"""A step that finds no memory is an outcome: nothing is raised, what it held is given back, the next one is right."""

import gc
import weakref

import pytest
import torch

from hydra.kernels.step.runner import Runner
from hydra.kernels.step.step_memory import is_out_of_memory, within_memory
from hydra.protocol.batch import Outcome
from hydra.protocol.refusal import RefusalError
from tests.unit.kernels.bench import ROUTE, Pipeline, Row, greedy, order, prompt, quiet

CPU = torch.device("cpu")
TOO_MUCH = 1 << 48  # bytes


def ask_for_too_much() -> torch.Tensor:
    return torch.empty(TOO_MUCH, dtype=torch.uint8)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("from Python or numpy"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=repr,
)
def test_the_errors_that_are_meant(error):
    def act():
        raise error

    outcome = within_memory(CPU, act)
    assert isinstance(outcome, Outcome) and outcome.out_of_memory and outcome.reason == str(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("a matrix of the wrong shape"), ValueError("out of memory"), KeyError(1)]
)
def test_other_faults_are_raised(error):
    def act():
        raise error

    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        within_memory(CPU, act)


def test_the_real_error_of_this_machine_is_known_and_lets_go_of_what_the_step_had():
    held = []

    def act():
        mine = torch.ones(10)
        held.append(weakref.ref(mine))
        return mine + ask_for_too_much()

    gc.disable()
    try:
        assert within_memory(CPU, act).out_of_memory and held[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("where", ["the pool", "the warm-up"])
def test_a_pool_that_finds_no_memory_is_refused_and_a_smaller_one_serves(untied, monkeypatch, where):
    line, ids = Pipeline(untied), prompt(3, 7)
    (runner,) = line.runners
    held = runner.held()
    with monkeypatch.context() as patched, pytest.raises(RefusalError) as caught:
        if where == "the warm-up":
            patched.setattr("hydra.kernels.step.runner.warm_up", lambda *_: ask_for_too_much())
        runner.activate(ROUTE, 16 if where == "the warm-up" else TOO_MUCH >> 9)
    assert caught.value.refusal.code == "does_not_fit" and "KV pool" in caught.value.refusal.message
    assert runner._routes[ROUTE].pool is None and runner.held() == held, "the weights stay"
    runner.activate(ROUTE, 16)
    assert line.generate(Row(list(ids), list(range(16))), 8) == greedy(untied, ids, 8)


@pytest.mark.parametrize("where", ["fetch_parts", "make_part_weights", "build_slice"])
def test_a_load_that_finds_no_memory_is_refused_wherever_it_is(untied, monkeypatch, where):
    """The CPU's allocator has no error class of its own: only its words tell."""
    runner = Runner("cpu")
    with monkeypatch.context() as patched, pytest.raises(RefusalError) as caught:
        patched.setattr(f"hydra.kernels.step.runner.{where}", lambda *_: ask_for_too_much())
        runner.load(order(untied, 0, 2), quiet)
    assert caught.value.refusal.code == "does_not_fit" and runner.held() == ()
    assert runner.load(order(untied, 0, 2), quiet).read_bytes


@pytest.mark.parametrize("where", ["launch", "collect"])
def test_the_rows_of_a_starved_step_are_right_when_they_are_computed_again(untied, monkeypatch, where):
    """In the middle of a step through the second stage, behind layers that have written their keys."""
    line = Pipeline(untied, (2,))
    second, ids = line.runners[1], prompt(3, 11)
    lane = second._lane
    with monkeypatch.context() as patched:
        if where == "collect":
            patched.setattr(lane, "collect", lambda ticket: ask_for_too_much())
        else:
            part = second._routes[ROUTE].slice
            patched.setattr(type(part.head), "__call__", lambda head, x: ask_for_too_much())
        outcome = starved(line, ids)
        assert outcome.out_of_memory and "allocate" in outcome.reason and outcome.hidden is None
    assert line.generate(Row(list(ids), list(range(9))), 12) == greedy(untied, ids, 12)


def starved(line: Pipeline, ids: list[int]) -> Outcome:
    outcomes = []
    collect = line.runners[1].collect
    line.runners[1].collect = lambda ticket: outcomes.append(collect(ticket)) or outcomes[-1]
    with pytest.raises(AssertionError):  # the driver wants a token
        line.run((Row(list(ids), list(range(9))), len(ids)))
    line.runners[1].collect = collect
    return outcomes[0]
