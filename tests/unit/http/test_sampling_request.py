"""Sampling parameters are listed once: what a request sends arrives whole in the object that travels to the kernels."""

from typing import get_args

import attrs
import pytest

from hydra.http.answers import answers_of, generate_request
from hydra.http.openai_request import ApiRequest, parse_request
from hydra.http.parameters import OF_ONE_ANSWER, PARAMETERS
from hydra.protocol.sampling import DefaultSampling, SamplingParams

SENT = {
    "temperature": 0.5, "top_k": 7, "top_p": 0.25, "min_p": 0.125, "presence_penalty": 0.5, "frequency_penalty": -0.5,
    "repetition_penalty": 1.5, "logit_bias": {"5": 2}, "seed": 11, "logprobs": 3, "min_tokens": 4,
}  # fmt: skip
READ = SENT | {"logit_bias": ((5, 2.0),)}
FIELDS = {field.name for field in attrs.fields(SamplingParams)}


def text_request(**sent):
    return parse_request("text", {"model": "m", "prompt": "hi", **sent})


def test_every_parameter_is_one_that_requests_send_or_is_worked_out():
    assert set(SENT) == FIELDS - OF_ONE_ANSWER, "a new parameter is to be read from requests, and to be sent here"
    assert all(PARAMETERS[kind][name].effect == "honoured" for kind in PARAMETERS for name in SENT)


@pytest.mark.parametrize("name", sorted(SENT))
def test_what_is_sent_changes_that_one_parameter(name):
    plain, sampling = text_request(seed=1).sampling, text_request(**({"seed": 1} | {name: SENT[name]})).sampling
    assert sampling == attrs.evolve(plain, **{name: READ[name]}) and getattr(sampling, name) != getattr(plain, name)


def test_a_request_that_sends_nothing_has_the_parameters_own_defaults():
    assert text_request(seed=0).sampling == SamplingParams()


def test_no_other_class_of_the_front_door_lists_them():
    assert FIELDS.isdisjoint(field.name for field in attrs.fields(ApiRequest))


def test_they_arrive_whole_in_every_answer(words, cluster):
    request = text_request(**SENT, n=2)
    for answer in answers_of(request, words, cluster.card):
        params = generate_request(request, answer, cluster.card, (2,)).params
        expected = attrs.evolve(request.sampling, choice=answer.choice, stop_ids=params.stop_ids)
        assert params == expected and 2 in params.stop_ids


def test_a_publisher_has_opinions_on_parameters_that_exist():
    types = {field.name: field.type for field in attrs.fields(attrs.resolve_types(SamplingParams))}
    for field in attrs.fields(attrs.resolve_types(DefaultSampling)):
        assert get_args(field.type) == (types[field.name], type(None)) and field.default is None


def test_an_opinion_counts_where_the_request_is_silent():
    opinions = DefaultSampling(temperature=0.25, top_k=9)
    assert opinions.opinions() == {"temperature": 0.25, "top_k": 9}
    filled = text_request(seed=0, top_k=3).with_defaults(opinions).sampling
    assert filled == SamplingParams(temperature=0.25, top_k=3)
