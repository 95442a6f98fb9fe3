"""Our answers in the eyes of OpenAI's own client types: whole, strict, nothing missing."""

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.asgi_client import ask
from tests.unit.http.fake_cluster import spell

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
