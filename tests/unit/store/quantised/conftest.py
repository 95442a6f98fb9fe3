"""Each kind of quantised checkpoint, written once."""

from pathlib import Path

import pytest

from tests.unit.store.quantised.checkpoints import CHECKPOINTS, write_checkpoint


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("quantised")
    return {name: write_checkpoint(root / str(number), name) for number, name in enumerate(CHECKPOINTS)}
