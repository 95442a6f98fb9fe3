"""A download of ranges as a process of its own, which can be killed: `python -m tests.range_download CACHE URL`."""

import random
import sys
from contextlib import closing
from pathlib import Path

from hydra.protocol.model_spec import StoredFile, TensorRange
from hydra.store import range_cache, range_fetch
from hydra.store.cache_room import CacheRoom
from hydra.store.hub_source import HubSource
from hydra.store.model_ref import HubAccess, HubRef
from hydra.store.range_cache import RangeCache
from tests.fake_hub import tag_of

REPO = "org/m"
CHUNK_BYTES, REQUEST_BYTES = 64 << 10, 300_000  # as many chunks and requests as a large model has
CONTENT = {f"model-{i}.safetensors": random.Random(i).randbytes(3_000_000) for i in range(2)}
FILES = tuple(StoredFile(file=name, size_bytes=len(raw), tag=tag_of(raw, name)) for name, raw in CONTENT.items())
WANTED = tuple(
    TensorRange(name=f"{name}@{start}", file=name, offset=start, length=length, dtype="float32", shape=(length // 4,))
    for name in CONTENT
    for start, length in ((8, 700_000), (700_008, 500_000), (1_500_000, 4), (2_000_000, 1_000_000))
)
WANTED_BYTES = sum(wanted.length for wanted in WANTED)


def download(root: Path, endpoint: str) -> Path:
    """The folder with all of WANTED."""
    range_fetch.CHUNK_BYTES, range_cache.REQUEST_BYTES = CHUNK_BYTES, REQUEST_BYTES
    source = HubSource(HubRef(REPO, "main"), HubAccess(endpoint=endpoint), FILES)
    with closing(RangeCache(CacheRoom(root=root))) as cache, closing(source):
        return cache.ensure("k", FILES, WANTED, (source,), lambda done, total: None, lambda: False)


if __name__ == "__main__":
    download(Path(sys.argv[1]), sys.argv[2])
