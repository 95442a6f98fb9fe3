"""A request beyond the context, told in the sentence by which clients know to cut the conversation and try again."""

import re

import httpx2
import openai
import pytest

from hydra.http.app import make_app
from hydra.protocol.context_length import context_overflow
from hydra.simulation.asgi_client import ask
from hydra.text.tokenizer import ModelTokenizer
from tests.unit.http.conftest import tokenizers_of

POST = httpx2.Request("POST", "http://test/v1/completions")


@pytest.fixture
def app(cluster, shutdown):
    """Over words that are not tried first: these tests are about requests."""
    return make_app(cluster, max_body_bytes=100_000, shutdown=shutdown, tokenizers=tokenizers_of(ModelTokenizer.load))


OVERFLOWS = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 300}], "max_tokens": 7},
     r"However, you requested (\d+) tokens \((\d+) in the messages, (\d+) in the completion\)\. "
     r"Please reduce the length of the messages or completion\. "),
    ("/v1/completions", {"prompt": "x" * 300, "max_tokens": 7},
     r"However, you requested (\d+) tokens \((\d+) in your prompt; (\d+) for the completion\)\. "
     r"Please reduce the length of the prompt or completion\. "),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "sentence"), OVERFLOWS)
async def test_an_overflow_is_told_in_the_sentence_that_clients_know(app, path, body, sentence):
    """Each of these is what some published client looks for, to cut the conversation and try again."""
    answer = await ask(app, "POST", path, {"model": "m", **body})
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (400, "context_length_exceeded")
    message = error["message"]
    found = re.fullmatch(
        r"This model's maximum context length is 200 tokens\. " + sentence + r"\(context_length_exceeded\)", message
    )
    requested, said, completion = map(int, found.groups())
    assert requested == said + completion and said >= 300 and completion == 7
    assert "this model's maximum context length is" in message.lower() and "reduce the length of the" in message
    client = openai.BadRequestError(message, response=httpx2.Response(400, request=POST), body=error)
    assert "context_length_exceeded" in str(client) and client.code == "context_length_exceeded"


async def test_without_a_limit_there_is_room_for_one_token(app):
    """A chat goes on to the end of the context, and has to be able to begin."""
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * 300}]}
    message = (await ask(app, "POST", "/v1/chat/completions", body)).json()["error"]["message"]
    assert "1 in the completion" in message


def test_where_only_ids_are_known_the_sentence_is_the_same():
    refusal = context_overflow(64, 60, 5, "max_tokens")
    assert (refusal.code, refusal.param) == ("context_length_exceeded", "max_tokens")
    assert refusal.message == context_overflow(64, 60, 5, "prompt").message
    assert "requested 65 tokens (60 in your prompt; 5 for the completion)" in refusal.message
