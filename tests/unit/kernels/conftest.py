"""Small published models, written once per session."""

import os

import pytest
import torch

from hydra.kernels.native.library import promise_library
from hydra.processes.native_build import begin_native_build
from tests.unit.kernels.bench import Published, publish


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def untied(tmp_path_factory) -> Published:
    return publish(tmp_path_factory.mktemp("untied"), seed=1, tie_word_embeddings=False)


@pytest.fixture(scope="session")
def tied(tmp_path_factory) -> Published:
    return publish(
        tmp_path_factory.mktemp("tied"),
        seed=2,
        tie_word_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
        head_dim=24,
    )


@pytest.fixture(scope="module")
def library():
    opened = begin_native_build(os.environ)()
    if opened is None:
        pytest.skip("this machine has no C compiler")
    promise_library(lambda: opened)
    yield opened
    promise_library(lambda: None)
