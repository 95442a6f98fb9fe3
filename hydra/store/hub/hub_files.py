"""A model at the Hub, described without its weights: its files as `model_dir` wants to see them.

Promises: of a weights file only the header is fetched, and not even that where the Hugging Face cache of this machine
holds the file. Without the Hub, a branch means the commit that either cache wrote down last and that is here. Refuses
to know what a header means.
"""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path

import attrs
import structlog

from hydra.protocol.model.model_spec import Described, StoredFile
from hydra.protocol.model.source import Directory
from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.cache.cache_room import unusable
from hydra.store.cache.range_source import SourceFault
from hydra.store.files.directory import FOLDERS_MAX
from hydra.store.formats.safetensors_header import Header, StoredTensor, parse_header, read_weights_header
from hydra.store.gguf.gguf_content import is_gguf
from hydra.store.hub.hf_cache import find_blob
from hydra.store.hub.hub import FILES_MAX, HubClient, Snapshot
from hydra.store.hub.hub_gguf import HubGguf, choose_gguf, describe_one
from hydra.store.hub.hub_source import HubSource
from hydra.store.models.gguf_model import LocalGguf
from hydra.store.models.local_copy import why_unlike
from hydra.store.models.model_dir import INDEX, SINGLE, describe_files
from hydra.store.models.model_ref import HubRef
from hydra.store.models.stored_tensors import Located
from hydra.store.models.weight_files import LocalFiles

THREADS = 8

log = structlog.get_logger()


@attrs.frozen
class HubFiles:
    """WeightFiles over a snapshot; `in_hf_cache` is its directory in the Hugging Face cache, whole or not."""

    hub: HubClient
    snapshot: Snapshot
    source: HubSource
    in_hf_cache: Path | None

    @property
    def folder(self) -> Path:
        return self.snapshot.folder

    def header(self, file: str) -> Header | None:
        stored = self.snapshot.file(file)
        if stored is None:
            return None
        if (here := find_blob(self.in_hf_cache, stored)) is not None:
            return read_weights_header(here, file)
        return parse_header(self.hub.header(self.snapshot, stored, self.source), file, stored.size_bytes)

    def tag(self, file: str, header: Header, tensors: Iterable[StoredTensor]) -> str:
        """The Hub's ETag: of weights it is the SHA-256 of the content, so equal files have equal tags in any commit."""
        stored = self.snapshot.file(file)
        assert stored is not None, "only files with a header are asked for their tag"
        return stored.tag

    def same_bytes(self, one: Located, other: Located) -> bool:
        """Nobody can tell from headers, and the weights are not fetched to find out."""
        return False

    def names(self) -> Iterable[str]:
        return [stored.file for stored in self.snapshot.files]

    def fetch_headers(self) -> None:
        """All headers at once: one after the other would cost a round trip per shard."""
        names = self._shards()
        listed = [stored for stored in self.snapshot.files if stored.file in names]
        shards = [stored for stored in listed if find_blob(self.in_hf_cache, stored) is None]
        with ThreadPoolExecutor(THREADS, thread_name_prefix="hydra-header") as pool:
            list(pool.map(self._fetch_header, shards))

    def _fetch_header(self, stored: StoredFile) -> None:
        self.hub.header(self.snapshot, stored, self.source)

    def _shards(self) -> set[str]:
        """The weights files there should be; a wrong index is for `describe_files` to refuse."""
        try:
            placed = json.loads((self.folder / INDEX).read_bytes())["weight_map"]
            return {SINGLE} if self.snapshot.file(SINGLE) is not None else {str(file) for file in placed.values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {SINGLE}


def describe_hub_model(hub: HubClient, ref: HubRef) -> Described:
    """Raises RefusalError: model_not_found, access_denied, source_unreachable, bad_model, unsupported."""
    try:
        if hub.access.offline:
            return _at_hand(hub, ref, "offline mode is on")
        if ref.is_commit and hub.is_cached(ref):
            return _described(hub, hub.cached(ref, ""), ref)
        try:
            snapshot = hub.snapshot(ref, briefly=hub.is_cached(ref) or any(_commits_at_hand(hub, ref)))
        except SourceFault as fault:
            model = _at_hand(hub, ref, f"{hub.access.endpoint} cannot be reached ({fault})")
            log.warning(
                "the Hub cannot be reached; going on with what is on this machine",
                model=model.model_path,
                reason=str(fault),
            )
            return model
        return _described(hub, snapshot, ref)
    except OSError as error:
        raise unusable(hub.cache_dir, error) from error


def _described(hub: HubClient, snapshot: Snapshot, ref: HubRef) -> Described:
    """As the Hub lists it. Its weights are read from the Hugging Face cache where that holds all of them."""
    place = attrs.evolve(ref, revision=snapshot.ref.revision)
    if place.gguf:
        place = choose_gguf((stored.file for stored in snapshot.files), place)
        snapshot = snapshot.within(place.folder) if place.folder else snapshot
    directory = hub.hf_cache.snapshot(snapshot.ref)
    with closing(hub.source(snapshot)) as source:
        if place.gguf:
            model = describe_one(HubGguf(hub, snapshot, source, directory), place, hub.cache_dir)
        else:
            files = HubFiles(hub, snapshot, source, directory)
            files.fetch_headers()
            model = describe_files(files, str(snapshot.ref), snapshot.ref.repo)
    hub_source = snapshot.ref.as_source
    if directory is None:
        return attrs.evolve(model, sources=(hub_source,))
    reason = why_unlike(str(directory), model.spec, model.files)
    if reason is not None:
        log.info("the Hugging Face cache has not all of this model; its weights there are not used", reason=reason)
        return attrs.evolve(model, sources=(hub_source,))
    return attrs.evolve(model, sources=(Directory(str(directory)), hub_source))


def _at_hand(hub: HubClient, ref: HubRef, why: str) -> Described:
    """What is on this machine of `ref`: of a branch the commit that was written down last, if it is here, in our own
    cache or in the Hugging Face cache; else the one before. `why` says why the Hub is not asked.
    """
    reasons: list[RefusalError] = []
    for at in _commits_at_hand(hub, ref):
        directory = hub.hf_cache.snapshot(at)
        try:
            if hub.is_cached(at):
                return _described(hub, hub.cached(at, why), ref)
        except RefusalError as refusal:
            reasons.append(refusal)
        try:
            if directory is not None:
                return _of_hf_cache(hub, directory, attrs.evolve(ref, revision=at.revision))
        except RefusalError as refusal:
            reasons.append(_not_whole(at, directory, refusal))
    raise reasons[0] if reasons else hub.missing(ref, why)


def _of_hf_cache(hub: HubClient, directory: Path, at: HubRef) -> Described:
    """Of a snapshot alone, with nobody to say what belongs to it. Raises RefusalError."""
    if at.gguf:
        at = choose_gguf(_gguf_paths(directory), at)
        directory /= at.folder
        model = describe_one(LocalGguf(directory), at, hub.cache_dir)
    else:
        model = describe_files(LocalFiles(directory), str(at), at.repo)
    return attrs.evolve(model, sources=(Directory(str(directory)), at.as_source))


def _gguf_paths(directory: Path) -> Iterator[str]:
    """Of the GGUF files in it and in its folders."""
    for depth in range(FOLDERS_MAX + 1):
        for path in islice(directory.glob("*/" * depth + "*"), FILES_MAX):
            if is_gguf(path.name):
                yield path.relative_to(directory).as_posix()


def _commits_at_hand(hub: HubClient, ref: HubRef) -> Iterator[HubRef]:
    """The commits here that `ref` may mean without the Hub, the one that was written down last first."""
    records = [record for record in (hub.recorded(ref), hub.hf_cache.recorded(ref)) if record is not None]
    commits = [commit for commit, _ in sorted(records, key=lambda record: record[1], reverse=True)]
    for commit in [ref.revision] if ref.is_commit else dict.fromkeys(commits):
        at = HubRef(ref.repo, commit)
        if hub.is_cached(at) or hub.hf_cache.snapshot(at) is not None:
            yield at


def _not_whole(at: HubRef, directory: Path | None, refusal: RefusalError) -> RefusalError:
    """The refusal for a snapshot that cannot serve."""
    if refusal.refusal.code != "bad_model":
        return refusal
    return refuse(
        "source_unreachable",
        f"Of {at} the Hugging Face cache has {directory}, which is not whole: {refusal} Complete it with "
        f"`hf download {at.repo} --revision {at.revision}` while the Hub can be reached.",
    )
