"""What a request is counted: each prompt once, however many its answers; a cached token only if nobody computed it."""

import attrs
import pytest

from hydra.http.answers import ANSWER_TOKENS_MAX, answers_of
from hydra.http.app import make_app
from hydra.http.openai_request import parse_request
from hydra.http.openai_response import Writer
from hydra.http.teller import Delta
from hydra.protocol.batch import token_ids
from hydra.protocol.refusal import RefusalError
from hydra.simulation.asgi_client import ask
from hydra.text.tokenizer import ModelTokenizer
from tests.unit.http.conftest import tokenizers_of
from tests.unit.http.fake_cluster import spell, tokens_of

TEXT = {"model": "m", "prompt": "hi", "max_tokens": 50}
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture
def app(cluster, shutdown):
    """Over words that are not tried first: these tests are about requests."""
    return make_app(cluster, max_body_bytes=100_000, shutdown=shutdown, tokenizers=tokenizers_of(ModelTokenizer.load))


async def usage_of(app, **changes):
    return (await ask(app, "POST", "/v1/completions", TEXT | changes)).json()["usage"]


@pytest.mark.parametrize(
    ("prompt", "n", "tokens"),
    [
        (["##", "##"], 2, 4),
        (["##", "##"], 1, 4),
        (["##", "a", "##"], 3, 5),
        ([[35, 35], [35, 35]], 2, 4),
        ("##", 5, 2),
        (["a"] * 128, 1, 128),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_each_prompt_is_counted_once(app, cluster, prompt, n, tokens):
    cluster.script = spell("ab", finish="length")
    usage = await usage_of(app, prompt=prompt, n=n)
    answers = n * (len(prompt) if isinstance(prompt, list) else 1)
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (tokens, 2 * answers)
    assert usage["total_tokens"] == tokens + 2 * answers
    streamed = (await ask(app, "POST", "/v1/completions", TEXT | {"prompt": prompt, "n": n, **WITH_USAGE})).events()
    assert streamed[-2]["usage"] == usage


CACHED = {
    "one answer": (["abcd"], 1, [3], 3),
    "the second finds what the first has left": (["abcd"], 2, [0, 3], 0),
    "both find it": (["abcd"], 2, [3, 2], 2),
    "the second prompt was there": (["abcd", "abcd"], 2, [0, 3, 3, 3], 3),
    "no more than there is": (["ab"], 1, [99], 2),
}


@pytest.mark.parametrize(("prompts", "n", "cached", "told"), CACHED.values(), ids=CACHED)
def test_cached_is_what_none_of_a_prompts_answers_computed(words, cluster, prompts, n, cached, told):
    request = parse_request("text", TEXT | {"prompt": prompts, "n": n, "echo": True})
    answers = answers_of(request, words, cluster.card)
    writer = Writer(request, answers, words)
    for answer, tokens in reversed(list(zip(answers, cached, strict=True))):
        writer.count(Delta(index=answer.index, text="echo", tokens=()))  # an echo knows nothing of caches
        writer.count(Delta(index=answer.index, text="x", tokens=tokens_of((1,), cached_tokens=tokens)))
        writer.count(Delta(index=answer.index, text="y", tokens=tokens_of((2,))))
    assert writer.usage()["prompt_tokens_details"]["cached_tokens"] == told


@pytest.mark.parametrize("include", [True, None])
async def test_continuous_usage_is_in_every_chunk(app, cluster, include):
    cluster.script = spell("abc", finish="length")
    options = {"include_usage": include, "continuous_usage_stats": True}
    events = (await ask(app, "POST", "/v1/completions", TEXT | {"stream": True, "stream_options": options})).events()
    chunks = [event for event in events[:-1] if event["choices"]]
    assert all(chunk["usage"]["prompt_tokens"] == 2 for chunk in chunks)
    tokens = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert tokens == sorted(tokens) and tokens[-1] == 3
    assert (events[-2]["choices"] == []) is bool(include), "the last word is for who asked for it"


# ---------------------------------------------------------------- an echo and no more


@pytest.mark.parametrize("n", [1, 2])
async def test_no_token_after_an_echo(app, cluster, n):
    body = TEXT | {"prompt": ["hi", "Grüße"], "echo": True, "max_tokens": 0, "n": n}
    content = (await ask(app, "POST", "/v1/completions", body)).json()
    texts = ["hi"] * n + ["Grüße"] * n
    assert [choice["text"] for choice in content["choices"]] == texts
    assert {choice["finish_reason"] for choice in content["choices"]} == {"length"}
    assert content["usage"] == {
        "prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0},
    }  # fmt: skip
    events = (await ask(app, "POST", "/v1/completions", body | WITH_USAGE)).events()
    choices = sorted((e["choices"][0]["index"], e["choices"][0]["text"]) for e in events[:-2])
    assert choices == list(enumerate(texts)) and events[-2]["usage"] == content["usage"]
    assert cluster.requests == [], "nothing was generated"


async def test_an_echo_may_fill_the_context(app, cluster):
    body = TEXT | {"prompt": "x" * 200, "echo": True}
    assert (await ask(app, "POST", "/v1/completions", body | {"max_tokens": 0})).status == 200
    assert (await ask(app, "POST", "/v1/completions", body | {"max_tokens": 1})).status == 400


BROKEN = [
    ("text", {"max_tokens": 0}, "max_tokens", "echo"),
    ("text", {"max_tokens": 0, "echo": False}, "max_tokens", "echo"),
    ("text", {"max_completion_tokens": 0, "echo": True}, "max_completion_tokens", "between 1"),
    ("chat", {"max_tokens": 0}, "max_tokens", "between 1"),
    ("chat", {"max_completion_tokens": 0}, "max_completion_tokens", "between 1"),
    ("text", {"max_tokens": -1, "echo": True}, "max_tokens", "between 0"),
    ("text", {"n": 129}, "n", "128"),
    ("text", {"prompt": ["x"] * 129}, "prompt", "128"),
]


@pytest.mark.parametrize(("kind", "changes", "param", "words"), BROKEN, ids=lambda value: str(value)[:30])
def test_limits_are_refused_by_name(kind, changes, param, words):
    said = {"prompt": "hi"} if kind == "text" else {"messages": [{"role": "user", "content": "hi"}]}
    with pytest.raises(RefusalError) as refused:
        parse_request(kind, {"model": "m", **said, **changes})
    assert refused.value.refusal.param == param and words in refused.value.refusal.message


# ---------------------------------------------------------------- many at once


async def test_128_answers_and_128_prompts(app, cluster):
    cluster.script = lambda request, number: tokens_of((97,), "length")
    content = (await ask(app, "POST", "/v1/completions", TEXT | {"n": 128, "max_tokens": 1})).json()
    assert [choice["index"] for choice in content["choices"]] == list(range(128))
    assert {choice["text"] for choice in content["choices"]} == {"a"} and content["usage"]["prompt_tokens"] == 2
    one = cluster.requests[0].prompt
    assert all(request.prompt is one for request in cluster.requests), "the answers share their prompt"


def test_the_answers_of_a_request_have_a_bound(words, cluster):
    request = parse_request("text", TEXT | {"prompt": ["x"] * 128, "n": 8})
    assert len(answers_of(request, words, cluster.card)) == 1024
    with pytest.raises(RefusalError) as refused:
        answers_of(attrs.evolve(request, n=9), words, cluster.card)
    assert (refused.value.refusal.code, refused.value.refusal.param) == ("invalid_value", "n")


def test_the_tokens_of_a_request_have_a_bound(words, cluster):
    card = attrs.evolve(cluster.card, max_model_len=ANSWER_TOKENS_MAX)
    prompt = [1] * (ANSWER_TOKENS_MAX // 128)
    request = parse_request("text", TEXT | {"prompt": prompt, "n": 128})
    assert len(answers_of(request, words, card)) == 128
    longer = attrs.evolve(request, prompts=(token_ids([1] * (len(prompt) + 1)),))
    with pytest.raises(RefusalError) as refused:
        answers_of(longer, words, card)
    assert refused.value.refusal.param == "n"
    assert len(answers_of(attrs.evolve(longer, n=1), words, card)) == 1, "one answer is bounded by the context alone"
