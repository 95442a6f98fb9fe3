"""What the door lets in fits the lanes behind it: the largest request is one message that can be sent and read."""

import json

import attrs
import pytest

from hydra.actors.core.names import BROKER
from hydra.http.answers import SEQUENCE_TOKENS_MAX, answers_of, generate_request
from hydra.http.cluster_routes import LAYERS_MAX, NAME_MAX, PATH_MAX
from hydra.http.openai_request import STOP_IDS_MAX, parse_json, parse_request
from hydra.http.sampling_request import BIAS_MAX
from hydra.protocol.batch import token_ids
from hydra.protocol.codec import decode, encode
from hydra.protocol.ids import ActorName, Attempt, SessionId
from hydra.protocol.messages.generations import Open
from hydra.protocol.messages.models import LoadModel
from hydra.protocol.refusal import RefusalError
from hydra.simulation.asgi_client import ask

TEXT = {"model": "m", "prompt": "hi"}
IDS = list(range((1 << 31) - STOP_IDS_MAX, 1 << 31))


def test_the_largest_request_fits_its_message(cluster, words):
    card = attrs.evolve(cluster.card, max_model_len=1 << 30)
    body = {
        "model": "m" * 1024, "prompt": [260], "stop": ["🎉" * 256] * 16, "min_tokens": 1,
        "max_tokens": 1, "stop_token_ids": IDS, "seed": (1 << 63) - 1,
        "logit_bias": {str(token): 99.0000001 for token in IDS[:BIAS_MAX]}, "n": 1, "logprobs": 20,
        "presence_penalty": 1.1, "frequency_penalty": 1.1, "repetition_penalty": 1.1, "top_p": 0.3, "min_p": 0.1,
    }  # fmt: skip
    request = attrs.evolve(parse_request("text", body), prompts=(token_ids([260] * (SEQUENCE_TOKENS_MAX - 1)),))
    (answer,) = answers_of(request, words, card)
    asked = generate_request(request, answer, card, words.end_ids)
    opening = Open(
        session=SessionId((1 << 31) - 1), attempt=Attempt((1 << 31) - 1), model_id="m" * 1024,
        history=asked.prompt, prompt_tokens=len(asked.prompt), max_tokens=asked.max_tokens,
        params=asked.params, stop_ids=asked.stop_ids, deaths=1000,
    )  # fmt: skip
    assert decode(encode(BROKER.actor, ActorName("sessions"), opening)).message == opening
    with pytest.raises(RefusalError) as caught:
        answers_of(attrs.evolve(request, prompts=(token_ids([260] * SEQUENCE_TOKENS_MAX),)), words, card)
    assert caught.value.refusal.code == "context_length_exceeded"
    open_end = parse_request("text", TEXT | {"max_tokens": None, "prompt": [1]})
    open_end = attrs.evolve(open_end, max_tokens=None)
    (answer,) = answers_of(open_end, words, card)
    assert generate_request(open_end, answer, card, ()).max_tokens == SEQUENCE_TOKENS_MAX - 1


DIGITS = "9" * 4301
TOO_MUCH = {
    "stop_token_ids": [7] * 30_000,
    "stop": ["x"] * 17,
    "logit_bias": {DIGITS: 1},
    "model": "m" * 4000,
    "stream_options": {f"k{n}": 1 for n in range(1000)},
    "response_format": {"type": "text", **{f"k{n}": 1 for n in range(1000)}},
    "prompt": [[7]] * 129,
}
TOO_LONG = (
    "seed", "n", "max_tokens", "max_completion_tokens", "top_k", "min_tokens", "logprobs", "temperature", "top_p",
    "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "best_of",
)  # fmt: skip


@pytest.mark.parametrize("param", TOO_MUCH)
async def test_too_much_of_a_parameter_is_refused_by_its_name(app, cluster, param):
    answer = await ask(app, "POST", "/v1/completions", TEXT | {param: TOO_MUCH[param]})
    error = answer.json()["error"]
    assert (answer.status, error["param"]) == (400, param) and len(answer.body) < 1000 and cluster.requests == []


@pytest.mark.parametrize("param", TOO_LONG)
@pytest.mark.parametrize("digits", [20, 400, 4301, 50_000])
def test_a_number_of_thousands_of_digits_is_refused(param, digits):
    with pytest.raises(RefusalError) as caught:
        parse_request("text", parse_json(json.dumps(TEXT | {param: 7}).replace("7", "7" * digits)))
    assert len(caught.value.refusal.message) < 300


@pytest.mark.parametrize("key", ["prompt", "stop_token_ids", "logit_bias", "metadata"])
def test_so_is_one_inside_of_a_parameter(key):
    value = {"7": 7} if key in ("logit_bias", "metadata") else [7]
    with pytest.raises(RefusalError):
        parse_request("text", parse_json(json.dumps(TEXT | {key: value}).replace("7", "7" * 4301)))


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/api/models/load", {"model_path": "/" * 50_000}, "model_path"),
        ("/api/models/load", {"model_path": "a", "model_id": "x" * 5000}, "model_id"),
        ("/api/models/load", {"model_path": "a", "dtype": "x" * 5000}, "dtype"),
        ("/api/models/load", {"model_path": "a", "total_layers": 1 << 63}, "total_layers"),
        ("/api/models/load", {"model_path": "a", "total_layers": -1}, "total_layers"),
        ("/api/models/unload", {"model_id": "x" * 5000}, "model_id"),
    ],
)
async def test_what_is_asked_of_the_planner_fits_its_message_too(app, path, body, param):
    answer = await ask(app, "POST", path, body)
    assert (answer.status, answer.json()["error"]["param"]) == (400, param)


async def test_a_job_of_an_endless_name_is_not_asked_for(app):
    for method in ("GET", "DELETE"):
        assert (await ask(app, method, "/api/models/jobs/" + "x" * 5000)).status == 404


def test_the_largest_load_fits_its_message():
    path, name = "🎉" * PATH_MAX, "🎉" * NAME_MAX
    load = LoadModel(ask=1, model_path=path, model_id=name, total_layers=LAYERS_MAX, dtype=name, wait=True)
    assert decode(encode(BROKER.actor, ActorName("asks"), load)).message == load
