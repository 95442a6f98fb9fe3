"""What MODEL means, and how the Hub is reached, as values."""

import pytest

from hydra.protocol.model_name import default_model_id, hub_parts
from hydra.protocol.refusal import RefusalError
from hydra.store.model_ref import ENDPOINT, HubAccess, HubRef, parse_ref, parse_source, source_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("org/name", HubRef("org/name", "main")),
        ("org/name@v1.0", HubRef("org/name", "v1.0")),
        (f"Org-1/Na.me_2@{COMMIT}", HubRef("Org-1/Na.me_2", COMMIT)),
        ("org/name@refs/pr/7", HubRef("org/name", "refs/pr/7")),
    ],
)
def test_a_hub_id(text, ref):
    assert parse_ref(text) == ref


def test_an_existing_directory_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(parse_ref("org/name"), HubRef)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert parse_ref("org/name").absolute() == tmp_path / "org" / "name"


@pytest.mark.parametrize(
    "text",
    ["", "name", "/abs/name", "~/x/y", "a/b/c", "../b", "a/..", "org/name@", "org/na me", "org/name@a..b", "a--b/c",
     "org/name@/etc", "a/b\0", "-a/b", "org/näme", "x" * 97 + "/b"],
)  # fmt: skip
def test_neither_a_directory_nor_a_hub_id(text):
    with pytest.raises(RefusalError) as caught:
        parse_ref(text)
    assert caught.value.refusal.code == "model_not_found"


def test_a_source_names_a_commit():
    ref = HubRef("org/name", COMMIT)
    assert source_of(ref) == f"hub:org/name@{COMMIT}" and parse_source(source_of(ref)) == ref
    assert [parse_source(text) for text in ("/models/x", "lane:w0", "hub:org/name", "hub:/etc@x")] == [None] * 4


@pytest.mark.parametrize(
    ("path", "name"),
    [("/models/llama", "llama"), ("/models/llama/", "llama"), ("org/name", "org/name"), ("org/name@v1", "org/name")],
)
def test_a_model_is_called_by_its_id_or_its_directory(path, name):
    assert default_model_id(path) == name


def test_hub_parts_leave_the_revision_out():
    assert hub_parts("org/name") == ("org/name", "")


@pytest.mark.parametrize(
    ("environ", "access"),
    [
        ({}, HubAccess()),
        ({"HF_ENDPOINT": "http://hub.lan/", "HF_TOKEN": " t\n"}, HubAccess(endpoint="http://hub.lan", token="t")),
        ({"HF_ENDPOINT": "", "HF_HUB_OFFLINE": "ON"}, HubAccess(offline=True)),
        ({"HF_HUB_OFFLINE": "0"}, HubAccess()),
    ],
)
def test_the_environment_as_other_tools_read_it(environ, access):
    assert HubAccess.of(environ) == access and HubAccess().endpoint == ENDPOINT


def test_the_token_is_not_in_the_representation():
    assert "secret" not in repr(HubAccess(token="secret"))
