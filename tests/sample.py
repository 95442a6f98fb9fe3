"""How much of the long sweeps is played: a sample, or all of it."""

import os


def n_seeds() -> int:
    """HYDRA_SEEDS: 36 in `make test`, 2,000 in `make test-all`."""
    return int(os.environ.get("HYDRA_SEEDS", "100"))


def plays_all() -> bool:
    return n_seeds() >= 1000
