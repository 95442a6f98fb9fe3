"""The audit hook, on during the whole run: in this process from here on, in every child from its first line."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from hydra.log import set_up as hydra_log
from tests.audit import hydra_audit

FOLDER = str(Path(hydra_audit.__file__).parent)
LOG = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    log = Path(tempfile.gettempdir()) / f"hydra-audit-{os.getpid()}.log"
    log.unlink(missing_ok=True)
    config.stash[LOG] = log
    os.environ[hydra_audit.LOG] = str(log)
    os.environ["HF_HUB_CACHE"] = str(log.with_suffix(".no-hf-cache"))  # what this machine has decides no test
    os.environ["PYTHONPATH"] = os.pathsep.join([FOLDER, *filter(None, [os.environ.get("PYTHONPATH")])])
    hydra_audit.install()


def heard(config: pytest.Config) -> list[str]:
    log = config.stash[LOG]
    return log.read_text().splitlines() if log.exists() else []


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if heard(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = heard(config)
    config.stash[LOG].unlink(missing_ok=True)
    if lines:
        terminalreporter.section("executed from a model directory, or on its behalf", red=True)
        terminalreporter.write_line("\n".join(lines))


@pytest.fixture(autouse=True, scope="session")
def loggers_are_not_kept() -> Iterator[None]:
    """A logger that is kept from its first use on would log as the test did that used it first."""
    configure = structlog.configure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structlog, "configure", lambda **how: configure(**how | {"cache_logger_on_first_use": False}))
        yield


@pytest.fixture(autouse=True)
def logging_as_it_was(loggers_are_not_kept: None) -> Iterator[None]:
    """What a test has set up for its process ends with the test."""
    yield
    if hydra_log._sink is not None:
        hydra_log._sink.close(hydra_log.FLUSH_S)
        hydra_log._sink = None
        structlog.reset_defaults()
