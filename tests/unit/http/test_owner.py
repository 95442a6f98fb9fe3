"""Whose a request is: all its answers have one number, and its API key is known to the cluster as a digest only."""

import pytest

from hydra.http.owner import owner_of
from hydra.protocol.messages.generations import OWNER_LENGTH_MAX
from hydra.simulation.asgi_client import ask

TEXT = {"model": "m", "prompt": ["hi", "ho"], "n": 2, "max_tokens": 5}


def test_a_key_has_one_owner_in_every_life():
    assert owner_of("Bearer sk-1") == owner_of("bearer  sk-1 ") == "5ec08f67b75e7cefdb5403d3e73b78b7"
    assert owner_of("Bearer sk-2") not in ("", owner_of("Bearer sk-1"))
    assert "sk-1" not in owner_of("Bearer sk-1") and len(owner_of("Bearer " + "k" * 10_000)) <= OWNER_LENGTH_MAX


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic c2stMQ==", "sk-1"])
def test_without_a_key_there_is_no_owner(header):
    assert owner_of(header) == ""


async def test_the_answers_to_one_request_belong_together(quick_app, cluster):
    for key in ("a", "b"):
        headers = [(b"authorization", b"Bearer " + key.encode())]
        assert (await ask(quick_app, "POST", "/v1/completions", TEXT, headers)).status == 200
    assert [request.owner for request in cluster.requests] == [owner_of("Bearer a")] * 4 + [owner_of("Bearer b")] * 4
    numbers = [request.request for request in cluster.requests]
    assert len(set(numbers[:4])) == len(set(numbers[4:])) == 1 and len(set(numbers)) == 2 and 0 not in numbers
