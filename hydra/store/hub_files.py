"""A model at the Hub, described without its weights: its files as `model_dir` wants to see them.

Promises: of a weights file only the header is fetched. Refuses to know what a header means.
"""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import attrs

from hydra.protocol.model_spec import Described, StoredFile
from hydra.store.cache_room import unusable
from hydra.store.hub import Hub, Snapshot
from hydra.store.hub_source import HubSource
from hydra.store.model_dir import INDEX, SINGLE, describe_files
from hydra.store.model_ref import HubRef, source_of
from hydra.store.safetensors_header import Header, StoredTensor, parse_header
from hydra.store.weight_files import Located

THREADS = 8


@attrs.frozen
class HubFiles:
    """WeightFiles over a snapshot."""

    hub: Hub
    snapshot: Snapshot
    source: HubSource

    @property
    def folder(self) -> Path:
        return self.snapshot.folder

    def header(self, file: str) -> Header | None:
        stored = self.snapshot.file(file)
        if stored is None:
            return None
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
        shards = [stored for stored in self.snapshot.files if stored.file in self._shards()]
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


def describe_hub_model(hub: Hub, ref: HubRef) -> Described:
    """Raises RefusalError: model_not_found, access_denied, source_unreachable, bad_model, unsupported."""
    try:
        snapshot = hub.snapshot(ref)
        with closing(hub.source(snapshot)) as source:
            files = HubFiles(hub, snapshot, source)
            files.fetch_headers()
            described = describe_files(files, str(snapshot.ref), ref.repo)
    except OSError as error:
        raise unusable(hub.cache_dir, error) from error
    return attrs.evolve(described, sources=(source_of(snapshot.ref),))
