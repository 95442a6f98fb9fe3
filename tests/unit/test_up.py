"""Nobody listens for other machines without a join token."""

import pytest

from hydra.complaint import Complaint
from hydra.up import require_token

NEAR = ["tcp://127.0.0.1:5555", "tcp://127.1.2.3:0", "tcp://localhost:5555", "tcp://[::1]:5555"]
FAR = ["tcp://*:5555", "tcp://0.0.0.0:5555", "tcp://192.168.0.10:5555", "tcp://[::]:5555", "tcp://den.local:5555"]


@pytest.mark.parametrize("addr", NEAR)
def test_on_loopback_nothing_is_asked(addr: str) -> None:
    require_token("store_addr", addr, "")


@pytest.mark.parametrize("addr", FAR)
def test_off_loopback_a_token_must_be_set(addr: str) -> None:
    with pytest.raises(Complaint) as caught:
        require_token("store_addr", addr, "")
    assert caught.value.exit_code == 6 and addr in caught.value.what
    require_token("store_addr", addr, "open-sesame")
