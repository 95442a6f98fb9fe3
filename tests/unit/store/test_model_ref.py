"""What MODEL means, and how the Hub is reached, as values."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import huggingface_hub
import pytest

from hydra.protocol.model.model_name import default_model_id, hub_parts
from hydra.protocol.model.source import HubCommit
from hydra.protocol.refusal import RefusalError
from hydra.store.models.model_ref import ENDPOINT, HubAccess, HubRef, parse_ref

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
    assert ref.as_source == HubCommit("org/name", COMMIT) and HubRef.of(ref.as_source) == ref


@pytest.mark.parametrize(
    ("path", "name"),
    [("/models/llama", "llama"), ("/models/llama/", "llama"), ("org/name", "org/name"), ("org/name@v1", "org/name")],
)
def test_a_model_is_called_by_its_id_or_its_directory(path, name):
    assert default_model_id(path) == name


def test_hub_parts_leave_the_revision_out():
    assert hub_parts("org/name") == ("org/name", "")


CACHE = Path("~/.cache/huggingface/hub").expanduser()


@pytest.mark.parametrize(
    ("environ", "access"),
    [
        ({}, HubAccess(hf_cache=CACHE)),
        (
            {"HF_ENDPOINT": "http://hub.lan/", "HF_TOKEN": " t\n"},
            HubAccess(endpoint="http://hub.lan", token="t", hf_cache=CACHE),
        ),
        ({"HF_ENDPOINT": "", "HF_HUB_OFFLINE": "ON"}, HubAccess(offline=True, hf_cache=CACHE)),
        ({"HF_HUB_OFFLINE": "0"}, HubAccess(hf_cache=CACHE)),
        ({"HF_HOME": "", "HF_HUB_CACHE": "", "XDG_CACHE_HOME": ""}, HubAccess(hf_cache=CACHE)),
    ],
)
def test_the_environment_as_other_tools_read_it(environ, access):
    assert HubAccess.of(environ) == access and HubAccess().endpoint == ENDPOINT


@pytest.fixture
def constants_in(monkeypatch):
    """`constants_in(environ)`: what huggingface_hub itself makes of an environment."""

    def read(environ: dict[str, str]) -> ModuleType:
        for name in list(os.environ):
            if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "XDG_")):
                monkeypatch.delenv(name)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        spec = importlib.util.spec_from_file_location("constants_anew", huggingface_hub.constants.__file__)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return read


@pytest.mark.parametrize(
    "environ",
    [
        {},
        *({"HF_HUB_OFFLINE": value} for value in ("1", "on", "Yes", "TRUE", "0", "no", "2", "auto", "")),
        *({"TRANSFORMERS_OFFLINE": value} for value in ("1", "on", "Yes", "TRUE", "0", "no", "")),
        {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "1"},
        {"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "1"},
        {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "0"},
        {"HF_DATASETS_OFFLINE": "1"},
        {"HF_ENDPOINT": "http://hub.lan/"},
        {"HF_HOME": "/data/hf"},
        {"HF_HOME": "~/hf"},
        {"HF_HOME": "relative"},
        {"HF_HUB_CACHE": "/data/hub", "HF_HOME": "/data/hf", "HUGGINGFACE_HUB_CACHE": "/data/old"},
        {"HF_HUB_CACHE": "$DISK/hub", "DISK": "/mnt"},
        {"HF_HUB_CACHE": "~nobody-of-that-name/hub"},
        {"HUGGINGFACE_HUB_CACHE": "~/old", "HF_HOME": "/data/hf"},
        {"XDG_CACHE_HOME": "/var/cache/me"},
        {"XDG_CACHE_HOME": "/var/cache/me", "HF_HOME": "/data/hf"},
        {"TRANSFORMERS_CACHE": "/data/transformers"},
    ],
    ids=str,
)
def test_every_variable_means_what_huggingface_hub_makes_of_it(constants_in, environ):
    theirs, ours = constants_in(environ), HubAccess.of(environ)
    assert (ours.offline, ours.endpoint) == (theirs.HF_HUB_OFFLINE, theirs.ENDPOINT)
    assert ours.hf_cache == Path(theirs.HF_HUB_CACHE).absolute()


@pytest.mark.parametrize(
    "environ",
    [
        {"HF_TOKEN": "hf_new", "HUGGING_FACE_HUB_TOKEN": "hf_old"},
        {"HUGGING_FACE_HUB_TOKEN": "hf_old"},
        {"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": " hf_old\r\n"},
        {"HF_TOKEN": "hf_\nnew "},
        {},
    ],
    ids=str,
)
def test_a_token_is_read_as_huggingface_hub_reads_it(constants_in, monkeypatch, tmp_path, environ):
    constants_in(environ)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert HubAccess.of(environ).token == (huggingface_hub.get_token() or "")


def test_the_token_is_not_in_the_representation():
    assert "secret" not in repr(HubAccess(token="secret"))
