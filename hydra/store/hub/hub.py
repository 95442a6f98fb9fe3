"""The Hub as a place where models are listed: which commit, which files, their small files and headers. No weights.

Promises: what a snapshot says of its files is what the Hub said of that commit, and lies in the cache afterwards, so
that the same question is answered offline, or says what is missing. A small file that the Hugging Face cache holds is
copied from there. Refuses to know what is in a model, and how weights come (`hub_source` does).
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import attrs
import httpx2
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.tqdm import disable_progress_bars

from hydra.protocol.model.model_spec import StoredFile
from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.cache.cache_room import is_of_the_disk, unusable
from hydra.store.cache.range_source import RangeIgnored, SourceFault, SourceSilent
from hydra.store.cache.retry_policy import RetryPolicy, retry
from hydra.store.files.directory import is_plain_name
from hydra.store.files.foreign_file import SNIFF_BYTES
from hydra.store.files.small_files import SMALL_FILES, SMALL_MAX_BYTES, TEMPLATES
from hydra.store.files.whole_file import write_whole
from hydra.store.formats.safetensors_header import HEADER_MAX_BYTES, LENGTH_BYTES
from hydra.store.gguf.gguf_content import is_gguf
from hydra.store.hub.hf_cache import HfCache, read_small
from hydra.store.hub.hub_source import IMPOSTOR, HubSource, denied, retry_after_s
from hydra.store.models.model_ref import HubAccess, HubRef, is_commit

FILES_MAX = 10_000
SMALL_REPLY_S = 3600.0  # a large tokenizer over a thin line; the library gives up a line that is silent
CACHED_TRIES = 2  # where the cache can answer, a Hub that is away costs a second, not a minute
HEADER_GUESS_BYTES = 64 << 10  # one request is enough for most headers
LISTING = ".hydra/files.json"

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Snapshot:
    """One commit of a repository; its small files are in `folder`."""

    ref: HubRef  # at the commit
    folder: Path
    files: tuple[StoredFile, ...]  # everything at the top of the repository, weights too; and GGUF files in its folders

    def file(self, name: str) -> StoredFile | None:
        return next((stored for stored in self.files if stored.file == name), None)

    def within(self, folder: str) -> "Snapshot":
        """Only what is in this folder of the repository, by its name there."""
        start = f"{folder}/"
        inside = [stored for stored in self.files if stored.file.startswith(start)]
        files = [attrs.evolve(stored, file=stored.file.removeprefix(start)) for stored in inside]
        plain = tuple(stored for stored in files if is_plain_name(stored.file))
        return attrs.evolve(self, ref=attrs.evolve(self.ref, folder=folder), files=plain)


@attrs.define(eq=False)
class HubClient:
    """Reads the Hub into `cache_dir`/hub. Any thread may call; two processes may at once."""

    access: HubAccess
    cache_dir: Path
    policy: RetryPolicy = attrs.field(factory=RetryPolicy)
    silence: str = attrs.field(default="", init=False)  # the last word on a Hub that said nothing; empty: it spoke
    _spoke: bool = attrs.field(default=False, init=False)  # it has answered in this process
    _api: HfApi = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        disable_progress_bars()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what it warns of is said by our refusals
        self._api = HfApi(endpoint=self.access.endpoint, token=self.access.token or False)

    @property
    def hf_cache(self) -> HfCache:
        return HfCache(self.access.hf_cache)

    def snapshot(self, ref: HubRef, *, briefly: bool = False) -> Snapshot:
        """The commit that `ref` means now, listed and with its small files here.

        `briefly`: a Hub that is away is not waited for long, for there is another answer. Raises SourceFault when it
        cannot be asked, and RefusalError: model_not_found, access_denied, source_unreachable, bad_model.
        """
        policy = attrs.evolve(self.policy.brief(), tries=CACHED_TRIES) if briefly else self.policy
        try:
            commit = retry(lambda: self._told(ref, lambda: self._commit(ref)), policy)
        except SourceSilent as fault:
            self.silence = str(fault)
            raise
        self.silence, self._spoke = "", True
        at = HubRef(ref.repo, commit)
        files = retry(lambda: self._told(at, lambda: self._list(at)), policy, heard=True)
        folder = self._folder(at)
        at_commit = Snapshot(ref=at, folder=folder, files=tuple(filter(_is_listed, files)))
        try:
            for small in _small_files(files):
                self._bring_small(at, small)
        except SourceFault as fault:
            raise self._unreachable(at, fault) from fault
        listing = [attrs.asdict(item) for item in at_commit.files]
        write_whole(folder / LISTING, json.dumps(listing).encode())
        write_whole(self._branch(ref), commit.encode())
        return at_commit

    def source(self, snapshot: Snapshot) -> HubSource:
        return self.source_of(snapshot.ref, snapshot.files)

    def source_of(self, at: HubRef, files: Sequence[StoredFile]) -> HubSource:
        """Where the weights of a commit are read. A Hub that was silent a moment ago is not waited for again."""
        return HubSource(at, self.access, files, silence=self.silence)

    def header(self, snapshot: Snapshot, stored: StoredFile, source: HubSource) -> bytes:
        """The length and the JSON that open a safetensors file, as stored there; by Range, kept in the cache."""
        return self.kept_bytes(snapshot, stored, lambda: _read_header(source, stored))

    def kept_bytes(self, snapshot: Snapshot, stored: StoredFile, fetch: Callable[[], bytes], part: str = "") -> bytes:
        """A little of a weights file, as `fetch` brings it: its header, or the part of this name; kept in the cache."""
        name = f"{stored.file}.{stored.tag[:64]}" + (f".{part}" if part else "")
        kept = snapshot.folder / ".hydra" / "headers" / name
        if kept.exists():
            return kept.read_bytes()
        if self.access.offline:
            raise self._missing(snapshot.ref, f"the header of {stored.file}", "offline mode is on")
        try:
            raw = retry(fetch, self.policy, heard=self._spoke)
        except SourceFault as fault:
            raise self._unreachable(snapshot.ref, fault) from fault
        write_whole(kept, raw)
        return raw

    # ------------------------------------------------------------ asking the Hub

    def _commit(self, ref: HubRef) -> str:
        commit = self._api.model_info(ref.repo, revision=ref.revision, timeout=10.0).sha
        if not commit or not is_commit(commit):
            raise SourceFault(f"{self.access.endpoint} names no commit for {ref}")
        return commit

    def _list(self, at: HubRef) -> list[StoredFile]:
        listed: list[StoredFile] = []
        for item in self._api.list_repo_tree(at.repo, revision=at.revision, recursive=True):
            if not isinstance(item, RepoFile):
                continue  # a folder
            if len(listed) == FILES_MAX:
                raise refuse("bad_model", f"{at} has more than {FILES_MAX} files.")
            tag = item.lfs.sha256 if item.lfs else item.blob_id
            listed.append(StoredFile(file=item.path, size_bytes=item.size, tag=tag))
        return listed

    def _bring_small(self, at: HubRef, stored: StoredFile) -> None:
        """A small file into our folder, from the Hugging Face cache if it lies there. Raises SourceFault."""
        if read_small(self._folder(at), stored) is not None:
            return
        content = read_small(self.hf_cache.snapshot(at), stored)
        if content is None:
            unhurried = attrs.evolve(self.policy, reply_s=SMALL_REPLY_S)
            retry(lambda: self._told(at, lambda: self._fetch_small(at, stored.file)), unhurried, heard=True)
        else:
            write_whole(self._folder(at) / stored.file, content)

    def _fetch_small(self, at: HubRef, name: str) -> None:
        hf_hub_download(
            at.repo,
            name,
            revision=at.revision,
            local_dir=self._folder(at),
            endpoint=self.access.endpoint,
            token=self.access.token or False,
        )

    def _told(self, ref: HubRef, call: Callable[[], T]) -> T:
        """The library's exceptions, as faults of the world or as refusals."""
        try:
            return call()
        except GatedRepoError as error:
            raise denied(self.access, ref.repo, error.response.status_code) from error
        except RevisionNotFoundError as error:
            raise refuse("model_not_found", f"{ref.repo} has no revision {ref.revision!r} at the Hub.") from error
        except (RepositoryNotFoundError, HfHubHTTPError) as error:
            raise self._meaning(ref, error.response) from error
        except httpx2.TransportError as error:
            raise SourceSilent(f"{type(error).__name__}: {error}") from error
        except (EntryNotFoundError, OSError) as error:
            if isinstance(error, OSError) and is_of_the_disk(error):
                raise unusable(self.cache_dir, error) from error
            raise SourceFault(f"{type(error).__name__}: {error}") from error
        except HFValidationError as error:  # a ValueError too
            raise refuse("model_not_found", f"{ref.repo} cannot be the name of a model at the Hub: {error}") from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:  # what the library makes of another JSON
            raise SourceFault(f"{self.access.endpoint} does not answer as a Hub does: {IMPOSTOR}") from error

    def _meaning(self, ref: HubRef, answer: httpx2.Response) -> Exception:
        if answer.status_code in (401, 403):
            return denied(self.access, ref.repo, answer.status_code)
        if answer.status_code == 404:
            return refuse(
                "model_not_found",
                f"There is no model {ref} at {self.access.endpoint}, and no directory of that name here.",
            )
        wait_s = retry_after_s(answer.headers.get("Retry-After"))
        return SourceFault(f"HTTP {answer.status_code} for {ref}", retry_after_s=wait_s)

    # ------------------------------------------------------------ the cache

    def _repo(self, ref: HubRef) -> Path:
        return self.cache_dir / "hub" / ref.repo.replace("/", "--")

    def _folder(self, at: HubRef) -> Path:
        return self._repo(at) / "commits" / at.revision

    def _branch(self, ref: HubRef) -> Path:
        return self._repo(ref) / "revisions" / quote(ref.revision, safe="")

    def is_cached(self, ref: HubRef) -> bool:
        try:
            self.cached(ref, "")
        except RefusalError:
            return False
        return True

    def recorded(self, ref: HubRef) -> tuple[str, float] | None:
        """The commit that a branch or tag was when the Hub was asked here last, and when that was written down."""
        record = self._branch(ref)
        try:
            return record.read_text(), record.stat().st_mtime
        except OSError:
            return None

    def cached(self, ref: HubRef, why: str) -> Snapshot:
        """What `snapshot` found the last time. Raises RefusalError source_unreachable, saying what is missing."""
        commit = ref.revision
        if not ref.is_commit:
            record = self.recorded(ref)
            if record is None:
                raise self.missing(ref, why)
            commit = record[0]
        at = HubRef(ref.repo, commit)
        try:
            listing = json.loads((self._folder(at) / LISTING).read_bytes())
            files = tuple(StoredFile(**item) for item in listing)
        except (OSError, ValueError, TypeError):
            raise self._missing(at, "the list of its files", why) from None
        return Snapshot(ref=at, folder=self._folder(at), files=files)

    def missing(self, ref: HubRef, why: str) -> RefusalError:
        """The refusal for a model of which nothing is on this machine, while the Hub is not asked; `why` says why."""
        return self._missing(ref, "everything", why)

    def _missing(self, ref: HubRef, what: str, why: str) -> RefusalError:
        elsewhere = "" if self.access.hf_cache is None else f" (and {self.access.hf_cache} has no such snapshot)"
        return refuse(
            "source_unreachable",
            f"Of {ref} the cache {self.cache_dir} lacks {what}{elsewhere}, and {why}. Fetch it while the Hub can be "
            f"reached (python -m hydra pull {ref}), set HF_ENDPOINT to a Hub that can be, or load a directory of this "
            "machine.",
        )

    def _unreachable(self, ref: HubRef, fault: SourceFault) -> RefusalError:
        return refuse("source_unreachable", f"{ref} cannot be fetched from {self.access.endpoint}: {fault}. Try again.")


def _is_listed(stored: StoredFile) -> bool:
    return is_plain_name(stored.file) or (is_gguf(stored.file) and all(map(is_plain_name, stored.file.split("/"))))


def _small_files(files: list[StoredFile]) -> Iterator[StoredFile]:
    """What a model needs beside weights. Raises RefusalError when one is too large to be what its name says."""
    for stored in files:
        template = stored.file.removeprefix(TEMPLATES)
        named = template != stored.file and is_plain_name(template) and template.endswith(".jinja")
        if stored.file not in SMALL_FILES and not named:
            continue
        if stored.size_bytes > SMALL_MAX_BYTES:
            raise refuse(
                "bad_model", f"{stored.file} has {stored.size_bytes} bytes; at most {SMALL_MAX_BYTES} are read."
            )
        yield stored


def _read_header(source: HubSource, stored: StoredFile) -> bytes:
    """Raises SourceFault."""
    if stored.size_bytes == 0:
        return b""
    try:
        first = b"".join(source.read(stored.file, 0, min(HEADER_GUESS_BYTES, stored.size_bytes)))
    except RangeIgnored:
        return _opening_of(source.read(stored.file, 0, stored.size_bytes))
    length = LENGTH_BYTES + int.from_bytes(first[:LENGTH_BYTES], "little")
    if length > min(stored.size_bytes, LENGTH_BYTES + HEADER_MAX_BYTES):
        return first[:SNIFF_BYTES]  # whoever parses it says what is wrong, and needs to see what it is instead
    if length > len(first):
        first += b"".join(source.read(stored.file, len(first), length - len(first)))
    return first[:length]


def _opening_of(stream: Iterator[bytes]) -> bytes:
    """The header from the beginning of a whole file, whose rest is declined."""
    first, length = b"", LENGTH_BYTES
    for data in stream:
        first += data
        if len(first) >= LENGTH_BYTES:
            length = LENGTH_BYTES + min(int.from_bytes(first[:LENGTH_BYTES], "little"), HEADER_MAX_BYTES)
        if len(first) >= length > LENGTH_BYTES:
            break
    return first[:length]
