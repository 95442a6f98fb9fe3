"""Logging as data, on standard error; standard output belongs to results. Role and node are bound once per process."""

import logging
import os
import sys

import structlog


def set_up_logging(role: str, node: str = "") -> None:
    """HYDRA_LOG is debug, info (default), warning or error; lines are for people on a terminal, JSON elsewhere."""
    level = getattr(logging, os.environ.get("HYDRA_LOG", "info").upper(), logging.INFO)
    last = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(role=role, **({"node": node} if node else {}))
