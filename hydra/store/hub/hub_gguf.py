"""A GGUF file at the Hub, described without its weights: which file of a repository is meant, and its header.

Promises: of each file only the header is fetched, by ranges that grow, and a few numbers of its rotary positions; not
even that where the Hugging Face cache of this machine holds the file. A quantisation that names no file, or several, is
refused with what is there. Refuses to know what a header means.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs

from hydra.protocol.model.model_name import default_model_id, gguf_stem
from hydra.protocol.model.model_spec import Described, StoredFile
from hydra.protocol.refusal import refuse
from hydra.store.cache.range_source import RangeIgnored
from hydra.store.formats.safetensors_header import Header, StoredTensor
from hydra.store.gguf.gguf_content import first_part, is_gguf
from hydra.store.gguf.gguf_header import (
    FIRST_BYTES,
    GgufHeader,
    NeedMore,
    next_bytes,
    parse_gguf_header,
    read_gguf_header,
)
from hydra.store.hub.hf_cache import find_blob
from hydra.store.hub.hub import HubClient, Snapshot
from hydra.store.hub.hub_source import HubSource
from hydra.store.models.gguf_model import GgufFiles, LocalGguf, describe_gguf
from hydra.store.models.model_dir import LISTED
from hydra.store.models.model_ref import HubRef

_NO_MODEL = re.compile(r"(^|[-_.])(mmproj|imatrix)([-_.]|$)", re.IGNORECASE)


@attrs.frozen
class HubGguf:
    """GgufFiles over a snapshot; `in_hf_cache` is its directory in the Hugging Face cache, whole or not."""

    hub: HubClient
    snapshot: Snapshot
    source: HubSource
    in_hf_cache: Path | None

    def header(self, file: str) -> GgufHeader | None:
        stored = self.snapshot.file(file)
        if stored is None:
            return None
        if (here := find_blob(self.in_hf_cache, stored)) is not None:
            return read_gguf_header(here, file)
        raw = self.hub.kept_bytes(self.snapshot, stored, lambda: _read_opening(self.source, stored))
        header = parse_gguf_header(raw, file, stored.size_bytes)
        if isinstance(header, NeedMore):
            raise refuse(
                "bad_model", f"The header of {file} in the cache {self.hub.cache_dir} is cut short. Remove it."
            )
        return header

    def tag(self, file: str, header: Header, tensors: Iterable[StoredTensor]) -> str:
        """The Hub's ETag."""
        return self._stored(file).tag

    def identity(self, file: str) -> str:
        """Nobody has its weights yet."""
        return ""

    def read(self, file: str, offset: int, length: int) -> bytes:
        stored = self._stored(file)
        if find_blob(self.in_hf_cache, stored) is not None and self.in_hf_cache is not None:
            return LocalGguf(self.in_hf_cache).read(file, offset, length)

        def fetch() -> bytes:
            return b"".join(self.source.read(file, offset, length))

        return self.hub.kept_bytes(self.snapshot, stored, fetch, part=f"{offset}-{length}")

    def _stored(self, file: str) -> StoredFile:
        stored = self.snapshot.file(file)
        assert stored is not None, "only files with a header are asked for more"
        return stored


def describe_one(files: GgufFiles, place: HubRef, cache_dir: Path) -> Described:
    """The file that was chosen, of those in its folder. Raises RefusalError: bad_model, unsupported."""
    return describe_gguf(files, place.gguf, str(place), default_model_id(str(place)), cache_dir)


def choose_gguf(names: Iterable[str], ref: HubRef) -> HubRef:
    """With the first part of the one file that `ref` names, or whose name, or whose folder's, bears that quantisation.
    `names` are paths in the repository.

    Raises RefusalError model_not_found with the list of what is there.
    """
    there = sorted({_first(name) for name in names if is_gguf(name)})
    if is_gguf(ref.gguf):
        wanted_path = f"{ref.folder}/{first_part(ref.gguf)}" if ref.folder else first_part(ref.gguf)
        matches = [path for path in there if path == wanted_path]
    else:
        inside = [path for path in there if not ref.folder or path.startswith(f"{ref.folder}/")]
        matches = _bearing(ref.gguf, inside)
    if len(matches) == 1:
        folder, _, file = matches[0].rpartition("/")
        return attrs.evolve(ref, gguf=file, folder=folder)
    what = f"{len(matches)} files are of {ref.gguf}" if matches else f"no GGUF file is or bears {ref.gguf!r}"
    listed = ", ".join((matches or there)[:LISTED]) or "there is none"
    raise refuse("model_not_found", f"In {attrs.evolve(ref, gguf='')} {what}: {listed}. Name one file.")


def _bearing(quantisation: str, paths: Sequence[str]) -> list[str]:
    """Those whose name bears it; where none does, those whose folder's name does."""
    wanted = re.compile(rf"(^|[-_.]){re.escape(quantisation)}($|[-.])", re.IGNORECASE)
    models = [path for path in paths if not _NO_MODEL.search(path.rpartition("/")[2])]
    by_name = [path for path in models if wanted.search(gguf_stem(path.rpartition("/")[2]))]
    return by_name or [path for path in models if wanted.search(path.rpartition("/")[0].rpartition("/")[2])]


def _first(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{first_part(name)}"


def _read_opening(source: HubSource, stored: StoredFile) -> bytes:
    """The header as stored there. Raises SourceFault, and RefusalError for what is none."""
    opening, needed = b"", FIRST_BYTES
    while True:
        end = min(needed, stored.size_bytes)
        if end > len(opening):
            try:
                opening += b"".join(source.read(stored.file, len(opening), end - len(opening)))
            except RangeIgnored:
                return _opening_of(source, stored)
        header = parse_gguf_header(opening, stored.file, stored.size_bytes)
        if isinstance(header, GgufHeader):
            return header.raw
        needed = next_bytes(header.n_bytes, len(opening))


def _opening_of(source: HubSource, stored: StoredFile) -> bytes:
    """The header from the beginning of a whole file, whose rest is declined."""
    opening, needed = b"", FIRST_BYTES
    for data in source.read(stored.file, 0, stored.size_bytes):
        opening += data
        if len(opening) < min(needed, stored.size_bytes):
            continue
        header = parse_gguf_header(opening, stored.file, stored.size_bytes)
        if isinstance(header, GgufHeader):
            return header.raw
        needed = next_bytes(header.n_bytes, len(opening))
    raise refuse("bad_model", f"The GGUF file {stored.file} ended before its header did.")
