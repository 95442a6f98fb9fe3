"""Small published models, written once per session."""

import pytest
import torch

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
