"""Our answers in the eyes of OpenAI's own client types: whole, strict, nothing missing."""

import attrs
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from hydra.simulation.asgi_client import ask
from tests.unit.http.fake_cluster import spell, tokens_of

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "m", "prompt": "hi", "max_tokens": 50}


@pytest.mark.parametrize("more", [{}, {"logprobs": True, "top_logprobs": 2}, {"n": 2}])
async def test_a_chat_in_one_piece(app, more):
    content = (await ask(app, "POST", "/v1/chat/completions", CHAT | more)).json()
    answer = ChatCompletion.model_validate(content, strict=True)
    assert answer.object == "chat.completion" and len(answer.choices) == more.get("n", 1)
    choice = answer.choices[0]
    assert choice.message.content == "Grüße, Welt" and choice.finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    if "logprobs" in more:
        tokens = choice.logprobs.content
        assert len(tokens) == answer.usage.completion_tokens
        assert tokens[0].token == "G" and tokens[0].bytes == [71] and len(tokens[0].top_logprobs) == 2


async def test_a_chat_in_chunks(app):
    body = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    events = (await ask(app, "POST", "/v1/chat/completions", body)).events()
    chunks = [ChatCompletionChunk.model_validate(event, strict=True) for event in events[:-1]]
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Grüße, Welt"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 14


@pytest.mark.parametrize("more", [{}, {"logprobs": 2}, {"echo": True}, {"prompt": ["a", "b"]}])
async def test_a_completion(app, more):
    answer = Completion.model_validate((await ask(app, "POST", "/v1/completions", TEXT | more)).json(), strict=True)
    assert len(answer.choices) == (2 if "prompt" in more else 1)
    assert answer.choices[0].text == ("hi" if "echo" in more else "") + "Grüße, Welt"
    if "logprobs" in more:
        logprobs = answer.choices[0].logprobs
        sizes = {
            len(x) for x in (logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset)
        }
        assert sizes == {14}


async def test_the_limit_is_a_reason(app, cluster):
    cluster.script = spell("abc", finish="length")
    answer = (await ask(app, "POST", "/v1/completions", TEXT)).json()
    assert answer["choices"][0]["finish_reason"] == "length" and answer["choices"][0]["text"] == "abc"


async def test_the_same_prompt_is_billed_once_for_n_answers(app):
    usage = [(await ask(app, "POST", "/v1/completions", TEXT | {"n": n})).json()["usage"] for n in (1, 3)]
    assert usage[0]["prompt_tokens"] == usage[1]["prompt_tokens"]
    assert usage[1]["completion_tokens"] == 3 * usage[0]["completion_tokens"]


async def test_ids_and_what_was_ignored_are_in_the_headers(app):
    answer = await ask(app, "POST", "/v1/completions", TEXT | {"wibble": 1})
    assert answer.headers["x-request-id"] and answer.headers["x-hydra-ignored"] == "wibble"


async def test_an_answer_ends_where_the_models_configuration_or_its_tokenizer_says(app, cluster, words):
    """The card names one id, tokenizer_config.json another; both end an answer, and neither with ignore_eos."""
    (end,) = words.end_ids
    assert end not in cluster.card.eos_ids
    for more, ids in (
        ({}, (*cluster.card.eos_ids, end)),
        ({"ignore_eos": True}, ()),
        ({"stop_token_ids": [end]}, None),
    ):
        await ask(app, "POST", "/v1/completions", TEXT | more)
        expected = (*cluster.card.eos_ids, end) if ids is None else ids
        assert cluster.requests[-1].stop_ids == expected, more


async def test_an_end_beyond_the_models_vocabulary_is_none(app, cluster, words):
    cluster.card = attrs.evolve(cluster.card, vocab=256, eos_ids=(1,))
    await ask(app, "POST", "/v1/completions", TEXT)
    assert cluster.requests[-1].stop_ids == (1,)


@pytest.mark.parametrize("stream", [True, False])
async def test_special_tokens_are_shown_to_who_wants_them(app, cluster, words, stream):
    ids = (*b"a", words.tokenizer.token_to_id("<|user|>"), *b"b", 256)
    cluster.script = lambda request, number: tokens_of(ids, "stop")
    for more, text in (({}, "ab"), ({"skip_special_tokens": False}, "a<|user|>b"), ({"stop": "<|user|>"}, "a")):
        answer = await ask(app, "POST", "/v1/completions", TEXT | more | {"stream": stream})
        choices = [event["choices"][0] for event in answer.events()[:-1]] if stream else answer.json()["choices"]
        assert "".join(choice["text"] for choice in choices) == text, more
        assert choices[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("top", [0, 1, 2])
async def test_a_completions_likeliest_hold_the_sampled_token(app, cluster, top):
    def script(request, number):
        best = ((98, -0.1), (99, -2.5))[: request.params.logprobs]
        return tokens_of((97,), "length", logprob=-3.0, top=best)

    cluster.script = script
    answer = (await ask(app, "POST", "/v1/completions", TEXT | {"logprobs": top})).json()
    (entries,) = answer["choices"][0]["logprobs"]["top_logprobs"]
    assert entries == {**dict([("b", -0.1), ("c", -2.5)][:top]), "a": -3.0}


@pytest.mark.parametrize(
    ("prompt", "more", "shown"),
    [
        ("<|user|>hi", {}, "<|user|>hi"),
        ([258, 104, 105], {}, "hi"),
        ([258, 104, 105], {"skip_special_tokens": False}, "<|user|>hi"),
    ],
)
async def test_an_echo_is_the_prompt_as_it_was_written(app, words, prompt, more, shown):
    assert words.tokenizer.token_to_id("<|user|>") == 258
    answer = await ask(app, "POST", "/v1/completions", TEXT | more | {"prompt": prompt, "echo": True, "max_tokens": 0})
    assert answer.json()["choices"][0]["text"] == shown
