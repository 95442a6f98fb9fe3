"""What a request may say. Every no names its parameter, with a status and the four keys of OpenAI's errors."""

import json

import pytest

from hydra.http.openai_request import parse_json, parse_request
from hydra.protocol.refusal import RefusalError
from hydra.simulation.asgi_client import ask

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "m", "prompt": "hi"}
FOUR = {"message", "type", "param", "code"}
NAN = b'{"model": "m", "prompt": "hi", "temperature": NaN}'

BROKEN = {
    "malformed": (b"{", 400, "invalid_json", None),
    "empty": (b"", 400, "invalid_json", None),
    "not an object": (b"[1]", 400, "invalid_json", None),
    "nan": (NAN, 400, "invalid_json", None),
    "nested": (b'{"a":' * 100 + b"1" + b"}" * 100, 400, "invalid_json", None),
    "deep": (b"[" * 90_000, 400, "invalid_json", None),
    "not utf-8": (b'{"model": "\xff"}', 400, "invalid_json", None),
    "no model": ({"prompt": "x"}, 400, "invalid_value", "model"),
    "unknown model": (TEXT | {"model": "x"}, 404, "model_not_found", "model"),
    "model as a number": (TEXT | {"model": 7}, 400, "invalid_value", "model"),
    "no prompt": ({"model": "m"}, 400, "invalid_value", "prompt"),
    "empty prompt": (TEXT | {"prompt": ""}, 400, "invalid_value", "prompt"),
    "a mixed prompt": (TEXT | {"prompt": ["a", 1]}, 400, "invalid_value", "prompt"),
    "a token beyond the vocabulary": (TEXT | {"prompt": [1, 261]}, 400, "invalid_value", "prompt"),
    "a negative token": (TEXT | {"prompt": [-1]}, 400, "invalid_value", "prompt"),
    "too long a prompt": (TEXT | {"prompt": "x" * 201}, 400, "context_length_exceeded", "prompt"),
    "too much to generate": (TEXT | {"max_tokens": 199}, 400, "context_length_exceeded", "prompt"),
    "temperature as text": (TEXT | {"temperature": "1"}, 400, "invalid_value", "temperature"),
    "temperature as a flag": (TEXT | {"temperature": True}, 400, "invalid_value", "temperature"),
    "temperature too high": (TEXT | {"temperature": 2.5}, 400, "invalid_value", "temperature"),
    "top_p beyond one": (TEXT | {"top_p": 1.5}, 400, "invalid_value", "top_p"),
    "max_tokens zero, without an echo": (TEXT | {"max_tokens": 0}, 400, "invalid_value", "max_tokens"),
    "max_tokens as a float": (TEXT | {"max_tokens": 1.5}, 400, "invalid_value", "max_tokens"),
    "max_tokens huge": (TEXT | {"max_tokens": 1 << 70}, 400, "invalid_value", "max_tokens"),
    "n too many": (TEXT | {"n": 129}, 400, "invalid_value", "n"),
    "stream as text": (TEXT | {"stream": "yes"}, 400, "invalid_value", "stream"),
    "stop as a number": (TEXT | {"stop": 5}, 400, "invalid_value", "stop"),
    "an empty stop": (TEXT | {"stop": [""]}, 400, "invalid_value", "stop"),
    "seed as text": (TEXT | {"seed": "5"}, 400, "invalid_value", "seed"),
    "logit_bias beyond": (TEXT | {"logit_bias": {"5": 101}}, 400, "invalid_value", "logit_bias"),
    "logit_bias of a word": (TEXT | {"logit_bias": {"x": 1}}, 400, "invalid_value", "logit_bias"),
    "more tokens than there may be": (TEXT | {"min_tokens": 6, "max_tokens": 5}, 400, "invalid_value", "min_tokens"),
    "more tokens than there are by default": (TEXT | {"min_tokens": 17}, 400, "invalid_value", "min_tokens"),
    "logprobs too many": (TEXT | {"logprobs": 21}, 400, "invalid_value", "logprobs"),
    "a suffix": (TEXT | {"suffix": "end"}, 400, "unsupported", "suffix"),
    "best_of": (TEXT | {"best_of": 3}, 400, "unsupported", "best_of"),
    "stream_options as text": (TEXT | {"stream_options": "x"}, 400, "invalid_value", "stream_options"),
}
BROKEN_CHAT = {
    "no messages": ({"model": "m"}, 400, "invalid_value", "messages"),
    "empty messages": (CHAT | {"messages": []}, 400, "invalid_value", "messages"),
    "messages as text": (CHAT | {"messages": "hi"}, 400, "invalid_value", "messages"),
    "a message as text": (CHAT | {"messages": ["hi"]}, 400, "invalid_value", "messages"),
    "no role": (CHAT | {"messages": [{"content": "x"}]}, 400, "invalid_value", "messages"),
    "an unknown role": (CHAT | {"messages": [{"role": "god", "content": "x"}]}, 400, "invalid_value", "messages"),
    "no content": (CHAT | {"messages": [{"role": "user"}]}, 400, "invalid_value", "messages"),
    "an image": (
        CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "invalid_value",
        "messages",
    ),
    "too long a conversation": (
        CHAT | {"messages": [{"role": "user", "content": "x" * 300}]},
        400,
        "context_length_exceeded",
        "messages",
    ),
    "tools": (CHAT | {"tools": [{"type": "function"}]}, 400, "unsupported", "tools"),
    "json mode": (CHAT | {"response_format": {"type": "json_object"}}, 400, "unsupported", "response_format"),
    "top_logprobs alone": (CHAT | {"top_logprobs": 2}, 400, "invalid_value", "top_logprobs"),
    "logprobs as a number": (CHAT | {"logprobs": 2}, 400, "invalid_value", "logprobs"),
}


@pytest.mark.parametrize(("body", "status", "code", "param"), BROKEN.values(), ids=BROKEN.keys())
async def test_broken_completions(app, cluster, body, status, code, param):
    await check(app, cluster, "/v1/completions", body, status, code, param)


@pytest.mark.parametrize(("body", "status", "code", "param"), BROKEN_CHAT.values(), ids=BROKEN_CHAT.keys())
async def test_broken_chats(app, cluster, body, status, code, param):
    await check(app, cluster, "/v1/chat/completions", body, status, code, param)


async def check(app, cluster, path, body, status, code, param):
    answer = await ask(app, "POST", path, body)
    error = answer.json()["error"]
    assert set(error) == FOUR and error["message"]
    assert (answer.status, error["code"], error["param"]) == (status, code, param)
    assert b"Traceback" not in answer.body and cluster.requests == []


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("GET", "/v1/models/x/y", 404, "model_not_found"),
        ("POST", "/api/models/load", 400, "invalid_json"),
        ("POST", "/api/models/unload", 400, "invalid_json"),
    ],
)
async def test_other_ways_to_be_wrong(app, method, path, status, code):
    answer = await ask(app, method, path)
    assert answer.status == status and answer.json()["error"]["code"] == code
    assert set(answer.json()["error"]) == FOUR


async def test_a_body_beyond_the_limit_is_too_large(app):
    answer = await ask(app, "POST", "/v1/completions", TEXT | {"prompt": "x" * 200_000})
    assert answer.status == 413 and answer.json()["error"]["code"] == "too_large"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model_path": 5}, "model_path"),
        ({}, "model_path"),
        ({"model_path": "/x", "total_layers": "4"}, "total_layers"),
        ({"model_path": "/x", "wait": 1}, "wait"),
        ({"model_path": "/x", "model_id": ""}, "model_id"),
    ],
)
async def test_a_wish_for_a_model_is_checked(app, body, param):
    answer = await ask(app, "POST", "/api/models/load", body)
    assert answer.status == 400 and answer.json()["error"]["param"] == param


async def test_models_status_and_the_rest(app, cluster):
    assert (await ask(app, "GET", "/health")).status == 200
    models = (await ask(app, "GET", "/v1/models")).json()
    assert models["object"] == "list" and models["data"][0]["id"] == "m" and models["data"][0]["object"] == "model"
    assert (await ask(app, "GET", "/v1/models/m")).json()["max_model_len"] == 200
    assert (await ask(app, "GET", "/api/cluster/status")).json() == {
        "epoch": 3, "ready": True, "nodes": [], "processes": [], "models": [], "losses": [],
    }  # fmt: skip
    assert (await ask(app, "POST", "/api/cluster/rebalance")).json()["state"] == "rebalancing"
    waited = await ask(app, "POST", "/api/models/load", {"model_path": "/x", "model_id": "m2"})
    assert (waited.status, waited.json()) == (200, {"model_id": "m2", "state": "ready"})
    begun = await ask(app, "POST", "/api/models/load", {"model_path": "/x", "wait": False})
    assert (begun.status, begun.json()) == (202, {"model_id": "m", "state": "loading", "job": "load-1-1"})
    assert (await ask(app, "POST", "/api/models/unload", {"model_id": "other"})).status == 404
    assert (await ask(app, "GET", "/ready")).status == 200
    cluster.is_ready = False
    asleep = await ask(app, "GET", "/ready")
    assert (
        asleep.status == 503 and asleep.headers["retry-after"] == "2" and "asleep" in asleep.json()["error"]["message"]
    )


async def test_a_load_job_can_be_followed_and_called_off(app):
    job = (await ask(app, "GET", "/api/models/jobs/load-1-1")).json()
    assert job == {
        "job": "load-1-1", "model_id": "m", "model_path": "org/m", "state": "loading",
        "bytes_done": 3, "bytes_total": 10, "error": None,
        "nodes": [
            {"node_id": "w0", "state": "fetching", "bytes_done": 3, "bytes_total": 10},
            {"node_id": "w1", "state": "waiting", "bytes_done": 0, "bytes_total": 0},
        ],
    }  # fmt: skip
    assert (await ask(app, "GET", "/api/models/jobs")).json() == {"jobs": [job]}
    called_off = await ask(app, "DELETE", "/api/models/jobs/load-1-1")
    assert called_off.status == 200 and called_off.json()["state"] == "cancelled"
    assert called_off.json()["error"]["code"] == "cancelled" and set(called_off.json()["error"]) == FOUR
    for method in ("GET", "DELETE"):
        unknown = await ask(app, method, "/api/models/jobs/load-9-9")
        assert unknown.status == 404 and unknown.json()["error"]["code"] == "job_not_found"


def parsed(kind="text", **changes):
    return parse_request(kind, (TEXT if kind == "text" else CHAT) | changes)


def test_what_is_left_out_has_openais_defaults():
    request = parsed()
    assert (request.max_tokens, request.sampling.temperature, request.sampling.top_p, request.n, request.stream) == (
        16,
        1.0,
        1.0,
        1,
        False,
    )
    assert parsed("chat").max_tokens is None, "a chat goes on to its end"
    assert parsed().sampling.seed != parsed().sampling.seed, "without a seed every request has one of its own"
    assert parsed(seed=-1).sampling.seed == (1 << 64) - 1


def test_names_that_are_newer_win_and_nulls_are_nothing():
    assert parsed("chat", max_tokens=5, max_completion_tokens=7).max_tokens == 7
    assert parsed(temperature=None, stop=None, logit_bias=None, seed=None, n=None).sampling.temperature == 1.0
    assert (
        parsed(stop="x").stop == ("x",) and parsed(top_k=-1).sampling.top_k == 0 and parsed(top_p=0).sampling.top_p > 0
    )


def test_content_may_come_in_parts():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert parsed("chat", messages=[{"role": "user", "content": parts}]).chat.messages[0]["content"] == "ab"


def test_unknown_keys_are_named_and_inert_ones_are_not():
    assert parsed(user="me", metadata={}, wibble=1, wobble=2).ignored == ("wibble", "wobble")


@pytest.mark.parametrize("prompt", [[1, 2], [[1, 2], [3]], ["a", "b"]])
def test_prompts_come_in_many_shapes(prompt):
    assert len(parsed(prompt=prompt).prompts) == (1 if prompt == [1, 2] else 2)


def test_a_number_with_ten_thousand_digits_is_refused():
    with pytest.raises(RefusalError):
        parsed(**parse_json(json.dumps({"seed": 7}).replace("7", "7" * 10_000)))
