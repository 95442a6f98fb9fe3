"""ModelTokenizer tried where they may be killed: what a bomb costs, and whom. Each of these runs in a real process."""

import base64
import json
import resource
import struct
import time

import attrs
import psutil
import pytest
import trio.testing

from hydra.http.app import make_app
from hydra.protocol.refusal import Refusal, RefusalError, refuse
from hydra.simulation.asgi_client import ask
from hydra.text.cache import ChatTemplateFile, TokenizerCache
from hydra.text.tokenizer import ChatInput, ModelTokenizer
from hydra.text.trial import load_tried
from tests.unit.http.conftest import tokenizers_of
from tests.unit.text.tokenizer_zoo import CHATML, ZOO, byte_level, save

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}
LOOP = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("name", ZOO)
def test_honest_words_pass(tmp_path, name):
    make, template = ZOO[name]
    directory = save(tmp_path, make(), template)
    words = load_tried(directory)
    chat = ChatInput(messages=[{"role": "user", "content": "hi"}])
    assert words.encode_chat(chat).tolist() == ModelTokenizer.load(directory).encode_chat(chat).tolist()


def charsmap(text_bytes: int) -> str:
    return base64.b64encode(struct.pack("<I", 4) + b"\0\0\0\0" + b"x" * text_bytes + b"\0").decode()


def replace(old: str, new: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def normalizers_of(*steps):
    return lambda content: content.update(normalizer={"type": "Sequence", "normalizers": list(steps)})


def decoders_of(*steps):
    return lambda content: content.update(decoder={"type": "Sequence", "decoders": list(steps)})


def split_by(regex):
    step = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return lambda content: content.update(pre_tokenizer=step)


def many_added(content):
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 500,
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }


BOMBS = {
    "a normalizer that doubles": normalizers_of(*[replace("a", "aa")] * 40),
    "a normalizer with a book": normalizers_of(replace("☃", "x" * 1_000_000)),
    "a long beginning": normalizers_of({"type": "Prepend", "prepend": "x" * 1_000_000}),
    "a table of long texts": normalizers_of({"type": "Precompiled", "precompiled_charsmap": charsmap(100_000)}),
    "bytes of bytes": normalizers_of(*[{"type": "ByteLevel"}] * 30),
    "many steps": normalizers_of(*[{"type": "NFC"}] * 10_000),
    "a decoder that doubles": decoders_of(*[replace("a", "aa")] * 40),
    "an endless regex": split_by("(a|aa|a|aa)+$x"),
    "the text five hundred times": many_added,
    "a token as long as a book": lambda content: content["added_tokens"].append(
        content["added_tokens"][0] | {"id": 600, "content": "y" * 100_000}
    ),
    "a model of another kind": lambda content: content.update(model={"type": "Magic"}),
    "merges of nothing": lambda content: content["model"].update(merges=[["q" * 9, "z" * 9]]),
    "letters that are not there": lambda content: content.update(
        model={"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]], "byte_fallback": False}
    ),
    "a table without a trie": normalizers_of({"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}),
    "a decoder that strips too much": decoders_of({"type": "Strip", "content": " ", "start": 1 << 60, "stop": 1}),
    "deep normalizers": lambda content: content.update(normalizer=nested(100)),
}


def nested(depth):
    step = {"type": "NFC"}
    for _ in range(depth):
        step = {"type": "Sequence", "normalizers": [step]}
    return step


@pytest.mark.parametrize("spoil", BOMBS.values(), ids=BOMBS.keys())
def test_a_tokenizer_that_is_a_bomb_costs_the_model(tmp_path, spoil):
    directory = save(tmp_path, byte_level(), CHATML)
    content = json.loads((directory / "tokenizer.json").read_text())
    spoil(content)
    (directory / "tokenizer.json").write_text(json.dumps(content))
    began = psutil.Process().memory_info().rss
    with pytest.raises(RefusalError, match=r"tokenizer\.json") as refused:
        load_tried(directory)
    assert refused.value.refusal.code == "bad_model"
    assert psutil.Process().memory_info().rss - began < 64 << 20
    assert not psutil.Process().children(), "nobody is left"


TEMPLATES = {
    "a loop": LOOP,
    "a doubling": "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "nonsense": "{% for %}",
    "endless nesting": "{{ " + "(" * 50_000 + " }}",
    "output": "{% for i in range(90000) %}{{ 'x' * 900 }}{% endfor %}",
    "only for tools": "{% if tools %}" + LOOP + "{% endif %}",
    "only for the third": "{% if messages | length > 3 %}" + LOOP + "{% endif %}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_a_template_that_is_a_bomb_costs_only_the_chats(tmp_path, template):
    named = [{"name": "default", "template": template}, {"name": "good", "template": CHATML}]
    words = load_tried(save(tmp_path, byte_level(), named))
    message = [{"role": "user", "content": "hi"}]
    with pytest.raises(RefusalError, match="chat template") as refused:
        words.encode_chat(ChatInput(messages=message))
    assert refused.value.refusal.code == "invalid_value"
    assert (
        words.encode_chat(ChatInput(messages=message, template="good")).tolist() and words.encode_prompt("hi").tolist()
    )


def test_a_template_that_only_refuses_some_chats_may_be_used(tmp_path):
    template = (
        "{% if messages | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}{{ messages[0].content }}"
    )
    words = load_tried(save(tmp_path, byte_level(), template))
    assert words.decode(words.encode_chat(ChatInput(messages=[{"role": "user", "content": "hi"}]))) == "hi"


def test_a_tokenizer_beyond_the_limit_is_not_even_read(tmp_path):
    directory = save(tmp_path, byte_level(), CHATML)
    with (directory / "tokenizer.json").open("r+b") as file:
        file.truncate((64 << 20) + 1)
    began_s = time.process_time()
    with pytest.raises(RefusalError, match="larger than"):
        load_tried(directory)
    assert time.process_time() - began_s < 1.0


# ---------------------------------------------------------------- through the API


async def test_a_bad_tokenizer_is_a_400_for_every_request_and_is_tried_once(cluster, shutdown, directory):
    tried = []

    def load(path, template):
        tried.append((path, template))
        raise refuse("bad_model", "tokenizer.json makes no sense")

    app = make_app(cluster, max_body_bytes=100_000, shutdown=shutdown, tokenizers=tokenizers_of(load))
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", {"model": "m", "prompt": "x"})) * 2:
        answer = await ask(app, "POST", path, body)
        assert (answer.status, answer.json()["error"]["code"]) == (400, "bad_model")
    assert tried == [(directory, None)] and cluster.requests == []


async def test_a_model_with_a_bad_tokenizer_does_not_stay_loaded(cluster, shutdown):
    def load(path, template):
        raise refuse("bad_model", "tokenizer.json makes no sense")

    app = make_app(cluster, max_body_bytes=100_000, shutdown=shutdown, tokenizers=tokenizers_of(load))
    answer = await ask(app, "POST", "/api/models/load", {"model_path": "/x"})
    assert (answer.status, answer.json()["error"]["code"]) == (400, "bad_model")
    assert cluster.unloaded == ["m"]


async def test_a_template_bomb_is_a_400_for_chats_and_nothing_for_others(cluster, shutdown, tmp_path):
    made = save(tmp_path, byte_level(), LOOP)
    cluster.card = attrs.evolve(cluster.card, model_path=str(made), folder=str(made), vocab=1000)
    app = make_app(cluster, max_body_bytes=100_000, shutdown=shutdown, tokenizers=tokenizers_of())
    answer = await ask(app, "POST", "/v1/chat/completions", CHAT)
    error = answer.json()["error"]
    assert answer.status == 400 and error["param"] == "messages" and "chat template" in error["message"]
    assert (await ask(app, "POST", "/v1/completions", {"model": "m", "prompt": "x"})).status == 200


@pytest.mark.parametrize("mine", [True, False])
async def test_the_operators_template_is_for_one_model(cluster, shutdown, directory, tmp_path, mine):
    file = tmp_path / "mine.jinja"
    file.write_text("AAAA")
    template = ChatTemplateFile(file, str(directory) if mine else "/elsewhere")
    app = make_app(cluster, max_body_bytes=100_000, shutdown=shutdown, tokenizers=tokenizers_of(chat_template=template))
    assert (await ask(app, "POST", "/v1/chat/completions", CHAT)).status == 200
    assert (cluster.requests[0].prompt.tolist() == [65] * 4) is mine


async def test_many_first_requests_are_one_reading(cluster, words):
    gate, readings = trio.Event(), []

    async def load(path, template):
        readings.append(path)
        await gate.wait()
        return words

    tokenizers = TokenizerCache(load)
    found = []

    async def one():
        found.append(await tokenizers.words_of(cluster.card, (cluster.card,)))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(one)
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
    assert len(readings) == 1 and found == [words] * 5


async def test_words_are_read_before_anybody_asks(cluster, words, autojump_clock):
    readings = []

    async def load(path, template):
        readings.append(path)
        if len(readings) == 1:
            raise refuse("bad_model", "no")
        return words

    tokenizers = TokenizerCache(load)
    cluster.card = attrs.evolve(cluster.card, state="loading")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tokenizers.read_ahead, cluster.models)
        await trio.sleep(5)
        assert len(readings) == 1, "before its weights are there"
        cluster.card = attrs.evolve(cluster.card, state="ready")
        await trio.sleep(5)
        assert len(readings) == 1, "a refusal is final"
        cluster.card = attrs.evolve(cluster.card, created_s=2)
        await trio.sleep(5)
        assert len(readings) == 2
        assert await tokenizers.words_of(cluster.card, (cluster.card,)) is words and len(readings) == 2
        nursery.cancel_scope.cancel()


async def test_a_model_that_is_loaded_anew_is_read_anew(cluster, words):
    said = [refuse("bad_model", "no"), None]

    async def load(path, template):
        if why := said.pop(0):
            raise why
        return words

    tokenizers = TokenizerCache(load)
    with pytest.raises(RefusalError):
        await tokenizers.words_of(cluster.card, (cluster.card,))
    with pytest.raises(RefusalError):
        await tokenizers.words_of(cluster.card, (cluster.card,))
    again = attrs.evolve(cluster.card, created_s=2)
    assert await tokenizers.words_of(again, (again,)) is words


def test_what_ends_the_process_is_a_refusal(tmp_path):
    """This one is not found by looking: building its automaton takes longer than any tokenizer may."""
    directory = save(tmp_path, byte_level(), CHATML)
    content = json.loads((directory / "tokenizer.json").read_text())
    content["added_tokens"] += [
        content["added_tokens"][0] | {"id": 600 + at, "content": f"{at}" + "y" * 400_000} for at in range(9)
    ]
    (directory / "tokenizer.json").write_text(json.dumps(content))
    began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with pytest.raises(RefusalError, match="ran out of time or memory"):
        load_tried(directory)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began < 4.0, "seconds of CPU"


def test_a_refusal_names_what_it_is_about(tmp_path):
    words = load_tried(save(tmp_path, byte_level(), "{% for %}"))
    found = words.templates["default"]
    assert isinstance(found, Refusal) and "makes no sense" in found.message
