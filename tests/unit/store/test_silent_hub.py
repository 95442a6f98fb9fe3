"""No network: a Hub of which nothing is heard is given up in seconds, by name and with what helps."""

import socket
import threading
import time
from contextlib import closing, contextmanager

import attrs
import httpx2
import pytest

from hydra.cli.pull import pull_model
from hydra.protocol.refusal import RefusalError
from hydra.settings import Settings
from hydra.store.cache import retry_policy as patience_module
from hydra.store.cache.cache_room import CacheRoom
from hydra.store.cache.range_cache import RangeCache
from hydra.store.cache.retry_policy import BRIEF_SILENCE_S, RetryPolicy
from hydra.store.hub.hub import HubClient
from hydra.store.hub.hub_library import HubLibrary
from hydra.store.hub.hub_source import FIRST_TIMEOUT, HubSource
from hydra.store.models.library import LocalLibrary
from hydra.store.models.model_ref import HubAccess, HubRef
from tests.fake_hub import Fault, fake_hub

SILENCE_S = 0.3
SOON_S = 8.0  # of a machine with other work; every single wait of the libraries is longer
QUICK = RetryPolicy(silence_s=SILENCE_S, first_s=0.05)


@contextmanager
def black_hole():
    """Accepts, and says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def refusing():
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@contextmanager
def nameless():
    yield "http://no-such-host.invalid"


def hang(*_, **__):
    threading.Event().wait()


@pytest.fixture(params=[black_hole, refusing, nameless, "a name whose lookup hangs"])
def endpoint(request, monkeypatch):
    if isinstance(request.param, str):
        monkeypatch.setattr("socket.getaddrinfo", hang)
        yield "http://hub.example"
        return
    with request.param() as url:
        yield url


def refused_soon(call):
    began_s = time.monotonic()
    with pytest.raises(RefusalError) as caught:
        call()
    assert time.monotonic() - began_s < SOON_S
    assert caught.value.refusal.code == "source_unreachable"
    return caught.value.refusal.message


def test_a_model_is_refused_with_the_host_and_what_helps(endpoint, tmp_path):
    library = HubLibrary(HubClient(HubAccess(endpoint=endpoint), tmp_path, QUICK))
    message = refused_soon(lambda: library.describe("org/m"))
    assert endpoint in message and "HF_ENDPOINT" in message and "directory" in message and "pull org/m" in message


def test_the_waits_of_a_real_run_are_short_enough():
    """In all at most 10 s: describing, or asking the cache instead and then for the weights."""
    first_s = max(FIRST_TIMEOUT.connect, FIRST_TIMEOUT.read)
    assert RetryPolicy().silence_s <= 8.0 and BRIEF_SILENCE_S + first_s <= 9.5


def test_what_is_in_the_cache_is_described_and_what_is_missing_is_not_waited_for(saved, tmp_path, monkeypatch):
    """The whole of `pull_model`, whose own patience is that of days with a network."""
    monkeypatch.setattr(patience_module, "BRIEF_SILENCE_S", SILENCE_S)
    settings = Settings()
    settings = attrs.evolve(settings, model=attrs.evolve(settings.model, cache_dir=str(tmp_path / "cache")))
    with fake_hub() as hub:
        hub.add("org/m", saved / "single")
        HubLibrary(HubClient(HubAccess(endpoint=hub.url), tmp_path / "cache")).describe("org/m")
    with black_hole() as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        began_s = time.monotonic()
        with pytest.raises(Exception, match="cannot be reached") as caught:
            pull_model("org/m", settings, lambda line: None)
        assert time.monotonic() - began_s < SOON_S and endpoint in str(caught.value)


def fetched(root, described, source, policy=QUICK):
    with closing(RangeCache(CacheRoom(root=root), policy)) as cache, closing(source):
        key = described.spec.fingerprint
        wanted = described.tensors
        return cache.ensure(key, described.files, wanted, [source], lambda done, total: None, lambda: False)


@pytest.mark.parametrize("network", [black_hole, refusing, nameless])
def test_weights_of_a_silent_hub_are_given_up_soon(network, saved, tmp_path, monkeypatch):
    monkeypatch.setattr("hydra.store.hub.hub_source.FIRST_TIMEOUT", httpx2.Timeout(SILENCE_S))
    described = LocalLibrary().describe(str(saved / "single"))
    with network() as endpoint:
        source = HubSource(HubRef("org/m", "0" * 40), HubAccess(endpoint=endpoint), described.files)
        assert "org/m" in refused_soon(lambda: fetched(tmp_path, described, source))


def test_a_hub_that_is_slow_but_lives_has_all_the_time_it_needs(saved, tmp_path):
    """Errors are answers: who hears them waits as long as ever, here much longer than for silence."""
    clock = [0.0]

    def sleep(delay_s):
        clock[0] += delay_s

    patient = RetryPolicy(silence_s=5.0, now=lambda: clock[0], sleep=sleep)
    with fake_hub() as hub:
        hub.add("org/m", saved / "single")
        hub.api_fault = lambda number: Fault(status=503, headers={"Retry-After": "20"}) if number < 4 else None
        hub.fault = lambda asked: Fault(status=503, headers={"Retry-After": "20"}) if asked.number < 3 else None
        library = HubLibrary(HubClient(HubAccess(endpoint=hub.url), tmp_path / "cache", patient))
        described = library.describe("org/m")
        source = HubSource(HubRef("org/m", hub.commit("org/m")), HubAccess(endpoint=hub.url), described.files)
        assert fetched(tmp_path / "ranges", described, source, patient)
    assert clock[0] > 90


def test_silence_counts_only_while_nothing_was_heard(saved, tmp_path):
    """A connection that breaks in the middle is a day like any other."""
    clock = [0.0]

    def sleep(delay_s):
        clock[0] += delay_s

    patient = RetryPolicy(silence_s=2.0, first_s=4.0, now=lambda: clock[0], sleep=sleep)
    with fake_hub() as hub:
        hub.add("org/m", saved / "single")
        described = LocalLibrary().describe(str(saved / "single"))
        hub.tags = {item.file: item.tag for item in described.files}
        hub.fault = lambda asked: Fault(cut_after=1000) if asked.number < 4 else None
        source = HubSource(HubRef("org/m", hub.commit("org/m")), HubAccess(endpoint=hub.url), described.files)
        assert fetched(tmp_path, described, source, patient)
    assert clock[0] > 2.0


def test_a_hub_that_speaks_again_is_asked_again(saved, tmp_path):
    with fake_hub() as hub:
        hub.add("org/m", saved / "single")
        talking = HubClient(HubAccess(endpoint=hub.url), tmp_path, QUICK)
        talking.silence = "nothing was heard"
        assert HubLibrary(talking).describe("org/m").spec.n_layers == 5 and not talking.silence
