"""Whoever splits a stream by Unicode's idea of a line, or an answer by str.splitlines, gets it whole."""

import json

import pytest

from hydra.http.app import make_app
from hydra.http.openai_response import json_bytes, sse
from hydra.simulation.asgi_client import ask
from hydra.text.tokenizer import ModelTokenizer
from tests.unit.http.conftest import tokenizers_of
from tests.unit.http.fake_cluster import spell

ENDS = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei\rj\nk"
TEXT = {"model": "m", "prompt": "hi", "max_tokens": 100}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def app(cluster, shutdown):
    """Over words that are not tried first: these tests are about requests."""
    return make_app(cluster, max_body_bytes=100_000, shutdown=shutdown, tokenizers=tokenizers_of(ModelTokenizer.load))


def events_by_lines(body: str) -> list[str]:
    """A text/event-stream parser as some clients have it: lines by str.splitlines, an event at each empty one."""
    events, data = [], []
    for line in body.splitlines():
        if line.startswith("data: "):
            data.append(line[6:])
        elif not line and data:
            events.append("\n".join(data))
            data = []
        else:
            assert not line, f"a piece of an event: {line!r}"
    return events


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", TEXT), ("/v1/chat/completions", CHAT)])
async def test_every_event_is_one_line(app, cluster, path, body):
    cluster.script = spell(ENDS)
    events = events_by_lines((await ask(app, "POST", path, body | {"stream": True})).body.decode())
    assert events.pop() == "[DONE]"
    choices = [json.loads(event)["choices"][0] for event in events]
    text = "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)
    assert text == ENDS


async def test_an_answer_in_one_piece_is_one_line(app, cluster):
    cluster.script = spell(ENDS)
    answer = await ask(app, "POST", "/v1/completions", TEXT)
    assert len(answer.body.decode().splitlines()) == 1 and answer.json()["choices"][0]["text"] == ENDS
    refused = await ask(app, "POST", "/v1/completions", TEXT | {"model": ENDS})
    assert refused.status == 404 and len(refused.body.decode().splitlines()) == 1


@pytest.mark.parametrize(
    "text", ["\u2028", "x\u2029\u2028y", "\u0085", "日本 é \u0084\u0086 \u2027\u202a 🎉", "\\u2028"]
)
def test_what_is_escaped_is_the_same_text(text):
    assert json.loads(json_bytes({text: [text]})) == {text: [text]}
    assert len(sse({"a": text}).decode().splitlines()) == 2, "the event, and the empty line behind it"
