"""Simulations run without log lines, which cost more than the arithmetic."""

import logging

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
