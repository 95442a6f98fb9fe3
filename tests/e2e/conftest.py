"""One model for all who only need some model."""

import pytest

from tests.e2e.served import Served, served


@pytest.fixture(scope="session")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return served(tmp_path_factory.mktemp("untied"), tied=False)
