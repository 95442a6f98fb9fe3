"""Kernels run by Triton's interpreter, on the CPU: it has to be chosen before Triton is imported, and for all of it."""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.triton)
            if not INTERPRETED:
                item.add_marker(pytest.mark.skip(reason="needs TRITON_INTERPRET=1 (make test-triton)"))
