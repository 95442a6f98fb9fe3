"""A source that says nothing is not waited for; one that asks for time is."""

import threading

import pytest

from hydra.protocol.refusal import refuse
from hydra.store.hub import FIRST_ANSWER_S, Hub
from hydra.store.hub_library import HubLibrary
from hydra.store.model_ref import HubAccess
from hydra.store.patience import Patience, persist_while_heard
from hydra.store.range_source import SourceFault

SHORT_S = 0.05
ENDLESS = Patience(tries=10**9, first_s=0.01, longest_s=0.01)


def test_what_hangs_is_left_behind():
    for_ever = threading.Event()
    with pytest.raises(SourceFault, match="no answer within"):
        persist_while_heard(lambda: for_ever.wait(60), ENDLESS, SHORT_S)
    for_ever.set()


def test_what_fails_again_and_again_is_given_up_with_its_own_words():
    tries = []

    def fail() -> None:
        tries.append(1)
        raise SourceFault("connection refused")

    with pytest.raises(SourceFault, match="connection refused"):
        persist_while_heard(fail, ENDLESS, SHORT_S)
    asking = next((thread for thread in threading.enumerate() if thread.name == "hydra-asking"), None)
    if asking is not None:
        asking.join(10)
        assert not asking.is_alive()
    n_tries = len(tries)
    assert n_tries > 1 and len(tries) == n_tries, "and nobody goes on asking"


def test_who_asks_for_time_has_it():
    answers = [SourceFault("HTTP 429", retry_after_s=4 * SHORT_S), "here"]

    def busy() -> str:
        answer = answers.pop(0)
        if isinstance(answer, SourceFault):
            raise answer
        return answer

    assert persist_while_heard(busy, ENDLESS, SHORT_S) == "here"


def test_other_exceptions_come_through():
    def no() -> None:
        raise refuse("model_not_found", "there is none")

    with pytest.raises(Exception, match="there is none"):
        persist_while_heard(no, ENDLESS, 5.0)


def test_without_a_network_a_hub_model_is_answered_for_within_ten_seconds(tmp_path, monkeypatch):
    assert FIRST_ANSWER_S <= 8
    monkeypatch.setattr("hydra.store.hub.FIRST_ANSWER_S", SHORT_S)
    for_ever = threading.Event()

    def no_resolver(*args: object, **more: object) -> None:
        for_ever.wait(60)
        raise OSError("no name server")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", no_resolver)
    library = HubLibrary(Hub(HubAccess(endpoint="http://hub.invalid"), tmp_path))
    with pytest.raises(Exception, match="no answer within") as caught:
        library.describe("org/name")
    assert caught.value.refusal.code == "source_unreachable"
    for_ever.set()
