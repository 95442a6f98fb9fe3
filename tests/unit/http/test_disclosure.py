"""Paths and link targets stay out of answers to those who do not manage the cluster."""

import attrs
import pytest

from hydra.http.app import make_app
from hydra.http.disclosure import HIDDEN, without_paths
from hydra.protocol.model.source import HubCommit
from hydra.protocol.refusal import Refusal, refuse
from hydra.simulation.asgi_client import ask
from tests.unit.http.conftest import tokenizers_of

TEXT = {"model": "m", "prompt": "hi", "max_tokens": 5}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
HUB_PATH = "org/name@0123456789abcdef"
TOLD = "config.json in /srv/secret models/a is a link to '/etc/shadow', outside the model directory."


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (TOLD, f"config.json in {HIDDEN} is a link to {HIDDEN}, outside the model directory."),
        ("x cannot be reached: [Errno 2] No such file or directory: '/srv/a b/c'.",
         f"x cannot be reached: [Errno 2] No such file or directory: {HIDDEN}."),
        ("/srv/models/a has no config.json. Give a directory.", f"{HIDDEN} has no config.json. Give a directory."),
        ("no plan: worker w0: /srv/a/b.", f"no plan: worker w0: {HIDDEN}."),
        ("see ~/.cache/hydra/models (or /tmp)", f"see {HIDDEN} (or {HIDDEN})"),
        ("the cache at '~/x' is full", f"the cache at {HIDDEN} is full"),
        ("no model '/home/me' is loaded", f"no model {HIDDEN} is loaded"),
        ("path:/srv/a", f"path:{HIDDEN}"),
        ("org/name@main at https://huggingface.co/org/name/a.json says 404", None),
        ("tcp://10.0.0.1:5555 is silent", None),
        ("use /v1/completions, or GET /api/models/jobs, or /health", None),
        ("read and/or write 1/2 of a / b", None),
    ],
)  # fmt: skip
def test_no_sentence_keeps_an_absolute_path(message, shown):
    assert without_paths(Refusal(code="bad_model", message=message)).message == (shown or message)


@pytest.mark.parametrize("body", [TEXT, TEXT | {"stream": True}, CHAT, CHAT | {"stream": True}])
@pytest.mark.parametrize("when", [0, 2])
async def test_what_ends_an_answer_tells_no_path(quick_app, cluster, body, when):
    spoken = cluster.script
    told = Refusal(code="does_not_fit", message=TOLD)
    cluster.script = lambda request, number: told if number == when else spoken(request, number)
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    answer = await ask(quick_app, "POST", path, body)
    assert HIDDEN.encode() in answer.body and b"secret" not in answer.body and b"shadow" not in answer.body


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/completions"), ("POST", "/v1/chat/completions"), ("GET", "/ready")]
)
async def test_nor_does_what_is_wrong_with_a_models_words(cluster, shutdown, method, path):
    def load(*_):
        raise refuse("bad_model", TOLD)

    app = make_app(cluster, max_body_bytes=100_000, shutdown=shutdown, tokenizers=tokenizers_of(load))
    method = "GET" if path == "/ready" else "POST"
    answer = await ask(app, method, path, TEXT if path == "/v1/completions" else CHAT)
    assert HIDDEN in answer.json()["error"]["message"] and b"/srv" not in answer.body and b"shadow" not in answer.body


async def test_who_loads_a_model_is_told_where_it_looked(quick_app, cluster, monkeypatch):
    async def load_model(**_):
        raise refuse("bad_model", TOLD)

    monkeypatch.setattr(type(cluster), "load_model", staticmethod(load_model))
    answer = await ask(quick_app, "POST", "/api/models/load", {"model_path": "/srv/secret models/a"})
    assert answer.json()["error"]["message"] == TOLD


async def test_a_models_card_names_no_directory(quick_app, cluster):
    hub = attrs.evolve(cluster.card, model_id="h", model_path=HUB_PATH, hub_commit=HubCommit("org/name", HUB_PATH[9:]))
    cluster.others = (hub,)
    answer = await ask(quick_app, "GET", "/v1/models")
    assert [model["root"] for model in answer.json()["data"]] == ["m", HUB_PATH]
    one = await ask(quick_app, "GET", "/v1/models/m")
    assert cluster.card.model_path.encode() not in answer.body + one.body
