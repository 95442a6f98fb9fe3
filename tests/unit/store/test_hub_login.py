"""Whose token is used: the one that was set, else that of a login, and never a login with another Hub."""

import huggingface_hub
import pytest

from hydra.store.hub.hub_login import with_login
from hydra.store.models.model_ref import HubAccess


@pytest.fixture(autouse=True)
def login(tmp_path, monkeypatch):
    """Somebody is logged in; nothing else on this machine says who."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text("hf_of_the_login\n")
    return tmp_path / "token"


@pytest.mark.parametrize(
    ("access", "token"),
    [
        (HubAccess(), "hf_of_the_login"),
        (HubAccess(token="hf_set"), "hf_set"),
        (HubAccess(offline=True), ""),
        (HubAccess(endpoint="https://mirror.example"), ""),
        (HubAccess(endpoint="https://mirror.example", token="hf_set"), "hf_set"),
    ],
)
def test_a_login_is_used_with_the_hub_alone_and_only_where_no_token_is_set(access, token):
    assert with_login(access).token == token


def test_a_login_is_not_used_where_that_is_forbidden(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    assert with_login(HubAccess()).token == "" and with_login(HubAccess(token="hf_set")).token == "hf_set"


def test_nobody_is_logged_in(login):
    login.unlink()
    assert with_login(HubAccess()) == HubAccess()
