"""Ready means that a request can be answered: a proven route, and words that can be used, of the same model."""

import json
import shutil

import attrs
import pytest
import structlog
import trio

from hydra.http.app import make_app
from hydra.http.readiness import RETRY_AFTER_S, Readiness
from hydra.protocol.model.source import HubCommit
from hydra.protocol.refusal import RefusalError, refuse
from hydra.simulation.asgi_client import ask
from hydra.store.hub.hub import HubClient
from hydra.store.hub.hub_library import HubLibrary
from hydra.store.models.model_ref import HubAccess
from hydra.text.cache import ChatTemplateFile, TokenizerCache, is_model_at
from hydra.text.tokenizer import ModelTokenizer
from hydra.text.trial import load_tried
from tests.fake_hub import fake_hub
from tests.unit.http.conftest import tokenizers_of

LONG_S = 60.0


def config_of(directory, **more):
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))


def without_template(directory):
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    config_of(directory, chat_template=None)


def named_templates(directory):
    without_template(directory)
    pairs = {"default": "{{ messages[0].content }}", "tool_use": "{% for %}"}
    config_of(directory, chat_template=[{"name": name, "template": text} for name, text in pairs.items()])


# What is wrong -> words of the reason.
SPOILT = {
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json cannot be read: there is no such file"),
    "a tokenizer of nothing": (lambda d: (d / "tokenizer.json").write_text("{}"), "tokenizer.json makes no sense"),
    "no JSON": (lambda d: (d / "tokenizer_config.json").write_text("{"), "tokenizer_config.json is not valid JSON"),
    "a bad template": (lambda d: (d / "chat_template.jinja").write_text("{% for %}"), "chat template makes no sense"),
    "a template in Latin-1": (
        lambda d: (d / "chat_template.jinja").write_bytes(b"\xe4"),
        "chat_template.jinja is not UTF-8",
    ),
}
FINE = {
    "as it is": lambda d: None,
    "no template at all": without_template,
    "only the template for tools is bad": named_templates,
}


@pytest.fixture
def other(directory, tmp_path, cluster):
    """A model directory of its own, and the card of the model in it."""
    copy = tmp_path / "other"
    shutil.copytree(directory, copy)
    return copy, attrs.evolve(cluster.card, model_id="other", model_path=str(copy), folder=str(copy))


def app_of(cluster, shutdown, tokenizers=None):
    return make_app(
        cluster, max_body_bytes=100_000, shutdown=shutdown, tokenizers=tokenizers or tokenizers_of(ModelTokenizer.load)
    )


@pytest.mark.parametrize(("spoil", "reason"), SPOILT.values(), ids=SPOILT.keys())
async def test_a_model_that_can_answer_nothing_is_not_ready(cluster, shutdown, other, spoil, reason):
    copy, cluster.card = other
    spoil(copy)
    answer = await ask(app_of(cluster, shutdown), "GET", "/ready")
    error = answer.json()["error"]
    assert (answer.status, error["code"], answer.headers["retry-after"]) == (503, "no_workers", f"{RETRY_AFTER_S:.0f}")
    assert reason in error["message"] and "other" in error["message"] and cluster.ready_asked == []


@pytest.mark.parametrize("spoil", FINE.values(), ids=FINE.keys())
async def test_a_model_that_can_answer_something_is_ready(cluster, shutdown, other, spoil):
    copy, cluster.card = other
    spoil(copy)
    app = app_of(cluster, shutdown)
    assert (await ask(app, "GET", "/ready")).json() == {"ready": True} and cluster.ready_asked == [("other",)]
    body = {"model": "other", "prompt": "hi", "max_tokens": 3}
    assert (await ask(app, "POST", "/v1/completions", body)).status == 200


async def test_of_several_models_one_that_can_answer_is_enough(cluster, shutdown, other):
    copy, card = other
    (copy / "tokenizer.json").unlink()
    cluster.others = (card,)
    app = app_of(cluster, shutdown)
    assert (await ask(app, "GET", "/ready")).status == 200
    assert cluster.ready_asked == [("m",)], "the route of the other one proves nothing"
    cluster.is_ready = False
    answer = await ask(app, "GET", "/ready")
    assert answer.status == 503 and answer.json()["error"]["message"] == "asleep"


async def test_before_there_is_a_model_the_cluster_says_what_is_missing(cluster, shutdown):
    cluster.gone, cluster.is_ready = True, False
    answer = await ask(app_of(cluster, shutdown), "GET", "/ready")
    assert answer.status == 503 and answer.json()["error"]["message"] == "asleep" and cluster.ready_asked == [()]


# ---------------------------------------------------------------- the first start, and later lives


async def test_a_first_start_learns_that_its_model_never_will_before_the_weights_are_there(cluster, other):
    copy, card = other
    (copy / "tokenizer.json").unlink()
    cluster.card, cluster.is_ready = attrs.evolve(card, state="loading"), False
    with trio.fail_after(10):
        fault = await Readiness(cluster, tokenizers_of(ModelTokenizer.load)).wait(str(copy))
    assert fault.refusal.code == "bad_model" and "no such file" in fault.refusal.message and "beside" in fault.fix


async def test_a_first_start_waits_for_route_and_coordinator(cluster, words, autojump_clock):
    """Neither a coordinator that says nothing yet nor a route that is not up yet ends it."""
    cluster.is_ready, cluster.silent = False, True
    readiness = Readiness(cluster, TokenizerCache(load_of(words)))
    async with trio.open_nursery() as nursery:

        async def wait():
            nonlocal fault
            fault = await readiness.wait(cluster.card.model_path)

        fault = "still waiting"
        nursery.start_soon(wait)
        await trio.sleep(60)
        cluster.silent = False
        await trio.sleep(60)
        assert fault == "still waiting" and cluster.ready_asked
        cluster.is_ready = True
    assert fault is None


async def test_who_waits_says_what_for_and_not_too_often(cluster, words, autojump_clock):
    cluster.is_ready, cluster.silent = False, True
    async with trio.open_nursery() as nursery:
        with structlog.testing.capture_logs() as lines:
            nursery.start_soon(Readiness(cluster, TokenizerCache(load_of(words))).wait, cluster.card.model_path)
            await trio.sleep(LONG_S)
            cluster.silent = False
            await trio.sleep(LONG_S)
        nursery.cancel_scope.cancel()
    told = [line for line in lines if line["event"] == "not ready yet"]
    assert [line["why"] for line in told[:2]] == [told[0]["why"]] * 2 and told[-1]["why"] == "asleep"
    assert 4 <= len(told) <= 6 and told[-1]["waits_s"] > LONG_S


def load_of(said):
    async def load(path, template):
        if isinstance(said, Exception):
            raise said
        return said

    return load


async def test_only_the_model_it_was_started_for_ends_a_first_start(cluster, words, autojump_clock):
    """One that a former run loaded besides is missed by nobody who reads the ready line."""

    async def load(path, template):
        if path.name == "broken":
            raise refuse("bad_model", "no")
        return words

    cluster.others = (attrs.evolve(cluster.card, model_id="b", model_path="/x/broken", folder="/x/broken"),)
    readiness = Readiness(cluster, TokenizerCache(load))
    assert await readiness.wait(cluster.card.model_path) is None
    assert (await readiness.wait("/x/broken")).refusal.message == "no"


async def test_a_later_life_waits_for_another_model_and_says_once_what_is_wrong(cluster, words, autojump_clock):
    async def load(path, template):
        if path.name == "good":
            return words
        raise refuse("bad_model", "tokenizer.json is gone")

    readiness = Readiness(cluster, TokenizerCache(load))
    with structlog.testing.capture_logs() as lines:
        with trio.move_on_after(LONG_S) as scope:
            await readiness.wait(None)
        assert scope.cancelled_caught and cluster.ready_asked == []
        cluster.others = (attrs.evolve(cluster.card, model_id="b", model_path="/x/good", folder="/x/good"),)
        assert await readiness.wait(None) is None
    warnings = [line for line in lines if line["log_level"] == "warning"]
    assert [(line["model"], line["why"]) for line in warnings] == [("m", "tokenizer.json is gone")]


# ---------------------------------------------------------------- what is said of words


async def test_a_bug_in_reading_words_costs_the_model_and_not_the_process(cluster):
    tokenizers = TokenizerCache(load_of(RuntimeError("the secret of /etc/passwd")))
    with structlog.testing.capture_logs() as lines, pytest.raises(RefusalError) as caught:
        await tokenizers.words_of(cluster.card, (cluster.card,))
    assert caught.value.refusal.code == "internal_error" and "secret" not in caught.value.refusal.message
    assert [line["log_level"] for line in lines] == ["error"]


async def test_a_tokenizer_with_more_ids_than_the_model_is_warned_of(cluster, words):
    tokenizers = TokenizerCache(load_of(words))
    with structlog.testing.capture_logs() as lines:
        assert await tokenizers.fault_of(cluster.card, (cluster.card,)) is None
        assert lines == []
        small = attrs.evolve(cluster.card, vocab=200, created_s=2)
        assert await tokenizers.fault_of(small, (small,)) is None
    assert [(line["log_level"], line["last_id"], line["vocabulary"]) for line in lines] == [("warning", 260, 200)]


async def test_the_operators_own_template_is_named(cluster, directory, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{% for %}")
    tokenizers = tokenizers_of(ModelTokenizer.load, ChatTemplateFile(file, str(directory)))
    fault = await tokenizers.fault_of(cluster.card, (cluster.card,))
    assert fault.fix == f"mend {file}, or leave --chat-template out" and "makes no sense" in fault.refusal.message


async def test_a_repository_without_a_tokenizer_is_told_as_one(cluster, other, tmp_path):
    copy, card = other
    (copy / "tokenizer.json").unlink()
    with fake_hub() as hub:
        hub.add("org/mute", copy)
        library = HubLibrary(HubClient(HubAccess(endpoint=hub.url), tmp_path / "cache"))
        described = await trio.to_thread.run_sync(library.describe, "org/mute")
    cluster.card = attrs.evolve(
        card, model_path=described.model_path, folder=described.folder, hub_commit=described.hub_commit
    )
    assert is_model_at(cluster.card, "org/mute")
    fault = await Readiness(cluster, tokenizers_of(load_tried)).wait("org/mute")
    assert "tokenizer.json cannot be read" in fault.refusal.message and "repository" in fault.fix


@pytest.mark.parametrize(
    ("asked", "path", "same"),
    [
        ("/models/a", "/models/a", True),
        ("/home/me/../../models/a", "/models/a", True),
        ("/models/a/", "/models/a", True),
        ("/models/b", "/models/a", False),
        ("org/a", "org/a@0123456789abcdef", True),
        ("org/a@main", "org/a@0123456789abcdef", True),
        ("org/b", "org/a@0123456789abcdef", False),
        ("org/a", "/models/org/a", False),
        ("org/a:Q4_K_M", "org/a@0123456789abcdef:m-Q4_K_M.gguf", True),
        ("org/a:q4/Q4_K_M", "org/a@0123456789abcdef:q4/m-Q4_K_M.gguf", True),
        ("org/a:q8/Q4_K_M", "org/a@0123456789abcdef:q4/m-Q4_K_M.gguf", False),
        ("", "/models/a", False),
    ],
)
def test_a_model_is_known_by_what_was_asked_for(cluster, asked, path, same):
    repo, _, commit = path.partition("@")
    commit = commit.partition(":")[0]
    card = attrs.evolve(cluster.card, model_path=path, hub_commit=HubCommit(repo, commit) if commit else None)
    assert is_model_at(card, asked) is same
