"""A download of a slice's ranges as a process of its own, which can be killed.

`python -m tests.range_download DIRECTORY CACHE URL`: of the model in DIRECTORY, which a Hub at URL has as well.
"""

import sys
from contextlib import closing
from pathlib import Path

import attrs

from hydra.protocol.model.model_spec import StoredFile, TensorRange
from hydra.store.cache import range_cache, range_fetch
from hydra.store.cache.cache_room import CacheRoom
from hydra.store.cache.range_cache import RangeCache
from hydra.store.hub.hub_source import HubSource
from hydra.store.models.library import LocalLibrary
from hydra.store.models.model_ref import HubAccess, HubRef
from tests.fake_hub import tag_of

REPO = "org/m"
SLICE = (2, 4)  # layers
CHUNK_BYTES, REQUEST_BYTES = 64 << 10, 300_000  # as many chunks and requests as a large model has


@attrs.frozen
class Errand:
    """What is to be brought: all weights files as the Hub lists them, and the wanted ranges of them."""

    files: tuple[StoredFile, ...]
    wanted: tuple[TensorRange, ...]

    @property
    def wanted_bytes(self) -> int:
        return sum(wanted.length for wanted in self.wanted)


def errand(directory: Path) -> Errand:
    library = LocalLibrary()
    found = library.describe(str(directory))
    listed = (
        StoredFile(file=path.name, size_bytes=path.stat().st_size, tag=tag_of(path.read_bytes(), path.name))
        for path in sorted(directory.glob("*.safetensors"))
    )
    return Errand(tuple(listed), library.slice_ranges(found, *SLICE))


def download(directory: Path, root: Path, endpoint: str) -> Path:
    """The folder with all that is wanted."""
    range_fetch.CHUNK_BYTES, range_cache.REQUEST_BYTES = CHUNK_BYTES, REQUEST_BYTES
    asked = errand(directory)
    source = HubSource(HubRef(REPO, "main"), HubAccess(endpoint=endpoint), asked.files)
    with closing(RangeCache(CacheRoom(root=root))) as cache, closing(source):
        return cache.ensure("k", asked.files, asked.wanted, (source,), lambda done, total: None, lambda: False)


if __name__ == "__main__":
    download(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
