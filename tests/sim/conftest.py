"""Simulations run without log lines, which cost more than the arithmetic, and with a seed count from outside."""

import logging
import os

import pytest
import structlog


@pytest.fixture(autouse=True)
def quiet_log():
    kept = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL), cache_logger_on_first_use=False
    )
    yield
    structlog.configure(**kept)


def n_seeds() -> int:
    """HYDRA_SEEDS: 60 in `make test`, 2,000 in `make test-all`."""
    return int(os.environ.get("HYDRA_SEEDS", "100"))
