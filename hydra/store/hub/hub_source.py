"""The Hub as a source of byte ranges: HTTP Range requests (RFC 9110 section 14) over one pool of connections.

Promises: bytes are handed out only if status, Content-Range, size and ETag say that they are the very bytes of the file
that was described, and never a page that a network or a proxy puts in their place; the token goes to the Hub alone,
never to a host it redirects to. Refuses to know who keeps them.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import quote

import attrs
import httpx2

from hydra.protocol.model.model_spec import StoredFile
from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.cache.range_source import RangeIgnored, SourceFault, SourceSilent, SourceUnfit
from hydra.store.models.model_ref import HubAccess, HubRef

HOPS_MAX = 5
USER_AGENT = "hydra-actors"
TIMEOUT = httpx2.Timeout(connect=10.0, read=15.0, write=10.0, pool=60.0)
FIRST_TIMEOUT = httpx2.Timeout(connect=4.0, read=6.0, write=6.0, pool=60.0)  # until something has answered at all

IMPOSTOR = "is there a login page of this network, or a proxy, in its place?"
PAGES = ("text/html", "application/xhtml+xml", "application/json", "application/xml", "text/xml")  # no weights are that

_CONTENT_RANGE = re.compile(r"bytes (\d{1,20})-(\d{1,20})/(\d{1,20})", re.ASCII)


@attrs.define(eq=False)
class HubSource:
    """One commit of one repository. `files` are its weights files as the Hub listed them. `silence`: that the Hub says
    nothing is known already, and why; it is not asked then."""

    ref: HubRef
    access: HubAccess
    files: Sequence[StoredFile]
    timeout: httpx2.Timeout = TIMEOUT
    silence: str = ""
    _heard: bool = attrs.field(default=False, init=False)
    _client: httpx2.Client = attrs.field(init=False)
    _stored: dict[str, StoredFile] = attrs.field(init=False)
    _moved: dict[str, httpx2.URL] = attrs.field(factory=dict, init=False)  # where the Hub said that a file really is

    def __attrs_post_init__(self) -> None:
        self._client = httpx2.Client(timeout=self.timeout, headers={"User-Agent": USER_AGENT})
        self._stored = {stored.file: stored for stored in self.files}

    @property
    def name(self) -> str:
        return str(self.ref.as_source)

    def close(self) -> None:
        self._client.close()

    def read(self, file: str, offset: int, length: int) -> Iterator[bytes]:
        """As RangeSource.read."""
        if self.access.offline:
            raise SourceUnfit("offline mode is on")
        if self.silence:
            raise SourceUnfit(f"{self.access.endpoint} cannot be reached ({self.silence})")
        stored = self._stored.get(file)
        if stored is None or offset + length > stored.size_bytes:
            raise SourceUnfit(f"{file} is not listed there with these bytes")
        whole = offset == 0 and length == stored.size_bytes
        headers = {"Accept-Encoding": "identity"}
        if not whole:
            headers["Range"] = f"bytes={offset}-{offset + length - 1}"
        try:
            url = self._moved.get(file) or self._url(file)
            for _ in range(HOPS_MAX):
                timeout = self.timeout if self._heard else _shorter(self.timeout, FIRST_TIMEOUT)
                with self._client.stream("GET", url, headers=headers | self._auth(url), timeout=timeout) as answer:
                    self._heard = True
                    if answer.is_redirect:
                        url = self._follow(answer, stored)
                        continue
                    self._check(answer, stored, offset, length, whole)
                    came = 0
                    for data in answer.iter_raw():
                        came += len(data)
                        yield data
                    if came != length:
                        raise SourceFault(f"the body of {file} has {came} of {length} bytes")
                    return
            raise SourceFault(f"{file} was redirected more than {HOPS_MAX} times")
        except httpx2.InvalidURL as error:
            raise SourceFault(f"{type(error).__name__}: {error}") from error
        except httpx2.TransportError as error:
            raise SourceSilent(f"{type(error).__name__}: {error}") from error

    def _url(self, file: str) -> httpx2.URL:
        repo, revision = quote(self.ref.repo), quote(self.ref.revision, safe="")
        path = "/".join(quote(part, safe="") for part in (*filter(None, self.ref.folder.split("/")), file))
        return httpx2.URL(f"{self.access.endpoint}/{repo}/resolve/{revision}/{path}")

    def _at_hub(self, url: httpx2.URL) -> bool:
        hub = httpx2.URL(self.access.endpoint)
        return (url.scheme, url.host, url.port) == (hub.scheme, hub.host, hub.port)

    def _auth(self, url: httpx2.URL) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.access.token}"} if self.access.token and self._at_hub(url) else {}

    def _follow(self, answer: httpx2.Response, stored: StoredFile) -> httpx2.URL:
        """Where the Hub sends us, remembered for the next range; the Hub's own word on tag and size comes with it."""
        here = answer.request.url
        there = here.join(answer.headers.get("Location", ""))
        if there.scheme not in ("http", "https") or (here.scheme == "https" and there.scheme != "https"):
            raise SourceFault(f"{stored.file} was redirected to {there.scheme}, which is not followed")
        if self._at_hub(here):
            _check_version(stored, answer.headers.get("X-Linked-ETag"), answer.headers.get("X-Linked-Size"))
        if not self._at_hub(there):
            self._moved[stored.file] = there
        return there

    def _check(self, answer: httpx2.Response, stored: StoredFile, offset: int, length: int, whole: bool) -> None:
        status, file = answer.status_code, stored.file
        if status not in (200, 206):
            raise self._failure(answer, file)
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind in PAGES:
            self._moved.pop(file, None)  # that address is none of the file's
            raise SourceFault(f"{answer.request.url.host} answers with {kind} in place of {file}: {IMPOSTOR}")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise SourceFault(f"{file} came compressed, though that was declined")
        at_hub = self._at_hub(answer.request.url)
        tag = (answer.headers.get("X-Linked-ETag") or answer.headers.get("ETag")) if at_hub else None
        _check_version(stored, tag, None)
        if status == 200:
            if not whole:
                raise RangeIgnored(f"{self.access.endpoint} hands out {file} only as a whole")
            size = answer.headers.get("Content-Length")
            _check_version(stored, None, size)
            if size is None and tag is None:
                raise SourceFault(f"{file} came without size and ETag, so nothing says that it is the file: {IMPOSTOR}")
            return
        content_range = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if content_range is None:
            raise SourceFault(f"{file} came as a part without a Content-Range")
        _check_version(stored, None, content_range[3])
        first, last = int(content_range[1]), int(content_range[2])
        if (first, last) != (offset, offset + length - 1):
            raise SourceFault(f"{file} came with bytes {first} to {last}; asked for were {offset} and {length} on")

    def _failure(self, answer: httpx2.Response, file: str) -> Exception:
        status = answer.status_code
        at_hub = self._at_hub(answer.request.url)
        if not at_hub:
            self._moved.pop(file, None)  # the address the Hub gave may have run out: ask it anew
        if at_hub and status in (401, 403):
            return denied(self.access, self.ref.repo, status)
        if at_hub and status in (404, 410):
            return SourceUnfit(f"{file} is not there (HTTP {status})")
        if status == 416:
            return SourceUnfit(f"{file} is shorter there than it was described (HTTP 416)")
        return SourceFault(f"HTTP {status} for {file}", retry_after_s=retry_after_s(answer.headers.get("Retry-After")))


def _shorter(one: httpx2.Timeout, other: httpx2.Timeout) -> httpx2.Timeout:
    mine, its = one.as_dict(), other.as_dict()
    least = {what: min((s for s in (mine[what], its[what]) if s is not None), default=None) for what in mine}
    return httpx2.Timeout(**least)


def denied(access: HubAccess, repo: str, status: int) -> RefusalError:
    """How to get access to a gated or private model."""
    have = "The token in use does not give access" if access.token else "No token is set"
    absent = " (or there is no such model)" if status == 401 else ""
    return refuse(
        "access_denied",
        f"The Hub denies access to {repo}{absent}: HTTP {status}. {have}: open {access.endpoint}/{repo} in a browser, "
        "accept its terms or ask its owner, and set a token that may read it as [model] hf_token or HF_TOKEN.",
    )


def retry_after_s(value: str | None) -> float | None:
    """Retry-After in seconds, whether it came as a number or as a date (RFC 9110 section 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdigit():
        return min(float(value), 86_400.0)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (until - datetime.now(UTC)).total_seconds()) if until.tzinfo is not None else None


def plain_tag(value: str) -> str:
    """An ETag without weakness mark and quotes."""
    return value.strip().removeprefix("W/").strip('"')


def _check_version(stored: StoredFile, tag: str | None, size: str | None) -> None:
    """Raises SourceUnfit when the Hub's file is not the one that was described; what it does not say is not checked."""
    if tag is not None and plain_tag(tag) != stored.tag:
        raise SourceUnfit(f"{stored.file} has changed there (ETag {plain_tag(tag)[:64]}, not {stored.tag}): load anew")
    if size is not None and size != str(stored.size_bytes):
        raise SourceUnfit(f"{stored.file} has {size[:20]} bytes there, not {stored.size_bytes}: load anew")
