"""The compiled products, as a worker has them: compiled once per machine, into this user's own cache."""

import pytest
import torch


@pytest.fixture
def threads():
    """Sets torch's, and puts them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
