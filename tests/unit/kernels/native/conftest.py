"""The compiled products, as a worker has them: compiled once per machine, into this user's own cache."""

import os

import pytest
import torch

from hydra.kernels.native.library import promise_library
from hydra.processes.native_build import begin_native_build


@pytest.fixture(scope="module")
def library():
    opened = begin_native_build(os.environ)()
    if opened is None:
        pytest.skip("this machine has no C compiler")
    promise_library(lambda: opened)
    yield opened
    promise_library(lambda: None)


@pytest.fixture
def threads():
    """Sets torch's, and puts them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
