"""Triton without a device: its interpreter runs the kernels on the CPU, its compiler compiles them.

Which of the two is chosen before Triton is imported, for a whole process: so there are two runs (make test-triton).
"""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
COMPILED = "test_compiles.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.triton)
        if find_spec("triton") is None:
            item.add_marker(pytest.mark.skip(reason="there is no Triton (make test-triton)"))
        elif (item.path.name == COMPILED) == INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="belongs to the other of the two runs of make test-triton"))
