"""The Hub as a source, over loopback: the very bytes that were described, or the reason why not."""

import re
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import attrs
import httpx2
import pytest

from hydra.protocol.model.encoding import F32
from hydra.protocol.model.model_spec import StoredFile, TensorRange
from hydra.protocol.refusal import RefusalError
from hydra.store.cache.cache_room import CacheRoom
from hydra.store.cache.range_cache import RangeCache
from hydra.store.cache.range_source import RangeIgnored, SourceFault, SourceUnfit
from hydra.store.cache.retry_policy import RetryPolicy
from hydra.store.hub.hub_source import HubSource, retry_after_s
from hydra.store.models.model_ref import HubAccess, HubRef
from tests.fake_hub import PORTAL, Asked, Fault, fake_hub, tag_of

FILE = "model.safetensors"
CONTENT = bytes(range(256)) * 1000
STORED = StoredFile(file=FILE, size_bytes=len(CONTENT), tag=tag_of(CONTENT, FILE))
PATIENT = httpx2.Timeout(5.0)
WANTED = TensorRange(name="t", file=FILE, offset=1000, length=200_000, encoding=F32, shape=(50_000,))


@pytest.fixture
def hub():
    with fake_hub() as found:
        found.repos["org/m"] = {FILE: CONTENT}
        yield found


@pytest.fixture
def source_of(hub):
    """`source_of(token=...)`: a source for the one file, closed at the end."""
    made = []

    def make(files=(STORED,), timeout=PATIENT, **access):
        access = HubAccess(**({"endpoint": hub.url} | access))
        made.append(HubSource(HubRef("org/m", hub.commit("org/m")), access, files, timeout))
        return made[-1]

    yield make
    for source in made:
        source.close()


def bytes_of(source, offset, length):
    return b"".join(source.read(FILE, offset, length))


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (5, 100_000), (len(CONTENT) - 7, 7), (0, len(CONTENT))])
def test_exactly_the_bytes_asked_for(hub, source_of, offset, length):
    assert bytes_of(source_of(), offset, length) == CONTENT[offset : offset + length]
    assert [(start, sent) for _, start, sent in hub.sent] == [(offset, length)]


def test_a_reader_that_has_enough_may_leave(source_of):
    stream = source_of().read(FILE, 0, 150_000)
    assert next(stream)
    stream.close()


@pytest.mark.parametrize(
    ("turn", "fault", "words"),
    [
        ({"fault": lambda asked: Fault(status=500)}, SourceFault, "HTTP 500"),
        ({"fault": lambda asked: Fault(status=429, headers={"Retry-After": "9"})}, SourceFault, "HTTP 429"),
        ({"fault": lambda asked: Fault(cut_after=40_000)}, SourceFault, "RemoteProtocolError|of 100000 bytes"),
        ({"fault": lambda asked: Fault(status=416)}, SourceUnfit, "416"),
        ({"fault": lambda asked: Fault(status=404)}, SourceUnfit, "404"),
        ({"lie_size": 4}, SourceUnfit, f"has {len(CONTENT) + 4} bytes there"),
        ({"tags": {FILE: "f" * 64}}, SourceUnfit, "has changed there"),
        ({"ranges": False}, RangeIgnored, "as a whole"),
    ],
    ids=["500", "429", "cut", "416", "404", "wrong size", "changed tag", "ignores Range"],
)
def test_what_is_not_as_described_is_a_fault(hub, source_of, turn, fault, words):
    for name, value in turn.items():
        setattr(hub, name, value)
    with pytest.raises(fault, match=words) as caught:
        bytes_of(source_of(), 10, 100_000)
    assert isinstance(caught.value, SourceUnfit) == (fault is SourceUnfit)
    if "429" in words:
        assert caught.value.retry_after_s == 9.0


PORTALS = [
    {"Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(PORTAL))},
    {"Content-Type": "TEXT/HTML", "ETag": f'"{STORED.tag}"'},
    {"Content-Type": "application/json"},
    {"Content-Type": "application/octet-stream"},
    {},
]


@pytest.mark.parametrize("portal", PORTALS, ids=str)
@pytest.mark.parametrize("length", [100, len(CONTENT)])
def test_a_page_in_place_of_the_file_is_a_fault(hub, source_of, portal, length):
    """The login page of a network or the error page of a proxy, with a status that says all is well."""
    hub.portal = portal
    source = source_of()
    with pytest.raises(SourceFault) as caught:
        bytes_of(source, 0, length)
    assert not isinstance(caught.value, SourceUnfit), "the same source may do better once somebody has logged in"
    if "Content-Type" in portal and "octet" not in portal["Content-Type"]:
        assert "login page" in str(caught.value)
    hub.portal = None
    assert bytes_of(source, 0, length) == CONTENT[:length]


@pytest.mark.parametrize("portal", PORTALS, ids=str)
def test_nothing_of_such_a_page_enters_the_cache(hub, source_of, tmp_path, portal):
    hub.portal = portal
    cache = RangeCache(CacheRoom(root=tmp_path), policy=RetryPolicy(sleep=lambda delay_s: None, tries=4))
    asked = ("k", (STORED,), (WANTED,), (source_of(),), lambda done, total: None, lambda: False)
    with closing(cache):
        with pytest.raises(RefusalError) as caught:
            cache.ensure(*asked)
        assert caught.value.refusal.code == "source_unreachable" and "login page" in caught.value.refusal.message
        hub.portal = None
        folder = cache.ensure(*asked)
        assert (folder / FILE).read_bytes()[WANTED.offset :][: WANTED.length] == CONTENT[1000:201_000]
        assert sum(sent for _, _, sent in hub.sent) == WANTED.length, "all of it came after that"


def test_a_page_behind_a_redirect_is_not_remembered(hub, source_of):
    with fake_hub() as elsewhere:
        elsewhere.repos, elsewhere.portal = hub.repos, {"Content-Type": "text/html"}
        hub.redirect_to = elsewhere.url
        source = source_of()
        with pytest.raises(SourceFault, match="login page"):
            bytes_of(source, 0, 100)
        hub.redirect_to = ""
        assert bytes_of(source, 0, 100) == CONTENT[:100]


def test_a_silent_server_is_a_fault(hub, source_of):
    hub.fault = lambda asked: Fault(pause_s=0.5)
    with pytest.raises(SourceFault, match="Timeout"):
        bytes_of(source_of(timeout=httpx2.Timeout(0.1)), 0, 100)


def test_nobody_there_is_a_fault(source_of):
    with pytest.raises(SourceFault, match="ConnectError"):
        bytes_of(source_of(endpoint="http://127.0.0.1:9"), 0, 1)


def test_offline_nothing_is_asked(hub, source_of):
    with pytest.raises(SourceUnfit, match="offline"):
        bytes_of(source_of(offline=True), 0, 1)
    assert not hub.requests


@pytest.mark.parametrize("file", ["other.safetensors", FILE])
def test_what_was_not_described_is_not_asked_for(hub, source_of, file):
    with pytest.raises(SourceUnfit, match="not listed"):
        b"".join(source_of().read(file, len(CONTENT), 1))
    assert not hub.requests


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("token", ["", "wrong"])
def test_a_gated_model_says_how_to_get_access(hub, source_of, status, token):
    hub.token, hub.denied_status = "right", status
    with pytest.raises(RefusalError) as caught:
        bytes_of(source_of(token=token), 0, 1)
    said = caught.value.refusal
    assert said.code == "access_denied" and f"{hub.url}/org/m" in said.message
    assert "terms" in said.message and "hf_token" in said.message and str(status) in said.message
    assert ("No token is set" in said.message) == (token == "")
    assert bytes_of(source_of(token="right"), 0, 9) == CONTENT[:9]


def test_the_token_stays_at_the_hub(hub, source_of):
    """Weights come from another host, whose address is kept for the next range and asked for anew when it expires."""
    with fake_hub() as elsewhere:
        elsewhere.repos = hub.repos
        hub.redirect_to, hub.token = elsewhere.url, "secret"
        source = source_of(token="secret")
        assert bytes_of(source, 3, 50) == CONTENT[3:53] and bytes_of(source, 100, 50) == CONTENT[100:150]
        assert len(hub.requests) == 1 and len(elsewhere.requests) == 2
        assert {authorization for _, authorization in elsewhere.authorized} == {""}
        elsewhere.fault = lambda asked: Fault(status=403) if asked.number == 3 else None
        with pytest.raises(SourceFault, match="403"):
            bytes_of(source, 0, 5)
        assert bytes_of(source, 0, 5) == CONTENT[:5] and len(hub.requests) == 2
        hub.tags[FILE] = "e" * 64
        with pytest.raises(SourceUnfit, match="has changed"):
            bytes_of(source_of(token="secret"), 0, 5)


def test_the_token_shows_nowhere(source_of):
    assert "secret" not in repr(source_of(token="secret"))


def test_retry_after_as_a_number_or_a_date():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=50), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=50), usegmt=True)
    assert retry_after_s(None) is None and retry_after_s("soon") is None
    assert retry_after_s("12") == 12.0 and retry_after_s(past) == 0.0
    assert 40 < retry_after_s(soon) <= 50


# ---------------------------------------------------------------- together with the cache


def every(n: int, fault: Fault):
    """The first of every n requests goes wrong."""
    return lambda asked: fault if asked.number % n == 1 else None


@pytest.mark.parametrize(
    "fault",
    [
        every(2, Fault(cut_after=70_000)),
        every(3, Fault(status=500)),
        every(2, Fault(status=429, headers={"Retry-After": "1"})),
        lambda asked: Fault(cut_after=30_000, pause_s=0.002) if asked.number < 4 else None,
    ],
    ids=["cut", "500", "429", "slow and cut"],
)
@pytest.mark.parametrize("ranges", [True, False])
def test_the_cache_gets_through_faults(hub, source_of, tmp_path, fault, ranges):
    hub.fault, hub.ranges = fault, ranges
    cache = RangeCache(CacheRoom(root=tmp_path), policy=RetryPolicy(sleep=lambda delay_s: None))
    with closing(cache):
        folder = cache.ensure("k", (STORED,), (WANTED,), (source_of(),), lambda done, total: None, lambda: False)
    raw = (folder / FILE).read_bytes()
    assert raw[WANTED.offset :][: WANTED.length] == CONTENT[WANTED.offset :][: WANTED.length]
    if ranges:
        wanted = range(WANTED.offset, WANTED.offset + WANTED.length)
        sent = hub.times_sent(FILE, len(CONTENT))
        assert all(count == (index in wanted) for index, count in enumerate(sent))


def test_faults_see_what_was_asked(hub, source_of):
    seen: list[Asked] = []
    hub.fault = lambda asked: seen.append(asked)
    bytes_of(source_of(), 77, 5)
    assert [attrs.astuple(asked) for asked in seen] == [(FILE, 77, 1)]
    assert re.search(r"bytes=77-81", hub.requests[0][2])
