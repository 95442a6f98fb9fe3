"""The audit hook, on during the whole run: in this process from here on, in every child from its first line."""

import os
import tempfile
from pathlib import Path

import pytest

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
