"""A Hub model as the coordinator lends it: for workers that cannot reach the Hub themselves.

Promises: what is asked for comes from this machine's range cache, and what the cache lacks is fetched from the Hub
first; never more of a weights file than the rest of the tensors that are being asked for. Refuses to know who asks, and
never waits long: whoever finds it busy or the Hub silent is told so, and what was fetched meanwhile is kept.
"""

import threading
from collections.abc import Callable
from pathlib import Path

import attrs

from hydra.protocol.lent import Lent
from hydra.protocol.model.encoding import F32
from hydra.protocol.model.model_spec import Described, StoredFile, TensorRange
from hydra.protocol.model.source import HubCommit
from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.cache.cache_room import CacheRoom
from hydra.store.cache.range_cache import RangeCache
from hydra.store.cache.range_source import RangeSource
from hydra.store.cache.retry_policy import RetryPolicy
from hydra.store.files.small_files import LENT_FILES
from hydra.store.files.spans import Spans
from hydra.store.hub.hub_source import HubSource
from hydra.store.lending.file_lender import FileLender, WholeFiles
from hydra.store.lending.lent_file import HeldFile
from hydra.store.models.model_ref import HubAccess, HubRef

AHEAD_BYTES = 8 << 20  # of the same tensor: its asker will want them next, and a request to the Hub is dear
BUSY_S = 5.0
PATIENCE = RetryPolicy(tries=2, first_s=0.2, longest_s=0.5, deadline_s=5.0, silence_s=5.0, stall_s=8.0)


@attrs.define(eq=False)
class HubPlace:
    """Implements Place. One fetch at a time; its entry in the cache is in use until `close`."""

    described: Described
    source: RangeSource
    room: CacheRoom
    close_source: Callable[[], None] = lambda: None
    _cache: RangeCache = attrs.field(init=False)
    _small: WholeFiles = attrs.field(init=False)
    _here: dict[str, Spans] = attrs.field(init=False)
    _stored: dict[str, StoredFile] = attrs.field(init=False)
    _open: dict[str, HeldFile] = attrs.field(factory=dict, init=False)  # as they were when something came last
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        self._cache = RangeCache(self.room, PATIENCE, threads=1)
        self._small = WholeFiles.of(Path(self.described.folder), LENT_FILES)
        self._here = {stored.file: Spans() for stored in self.described.files}
        self._stored = {stored.file: stored for stored in self.described.files}

    def read(self, file: str, offset: int, length: int) -> Lent:
        """As Place.read; also raises timeout, source_unreachable, access_denied and does_not_fit."""
        if file not in self._stored:
            return self._small.read(file, offset, length)
        size_bytes = self._stored[file].size_bytes
        if offset < 0 or length < 0 or offset + length > size_bytes:
            what = f"{file} has {size_bytes} bytes; {offset} to {offset + length} were asked for"
            raise refuse("invalid_value", what, param="offset")
        if not self._lock.acquire(timeout=BUSY_S):
            raise refuse("timeout", f"{file} is being fetched from {self.source.name}", retry_after_s=BUSY_S)
        try:
            if length == 0:
                return Lent(bytearray(), size_bytes)
            return self._confirmed(file, offset, length)
        except OSError as error:
            raise refuse("bad_model", f"{file} cannot be read from the cache: {error.strerror}") from error
        finally:
            self._lock.release()

    def _confirmed(self, file: str, offset: int, length: int) -> Lent:
        """From the cache, by its checksums. What they do not confirm any more is brought once more."""
        self._bring(file, offset, offset + length)
        try:
            return self._open[file].read(offset, length)
        except RefusalError:
            self._here[file] = Spans()
        self._bring(file, offset, offset + length)
        return self._open[file].read(offset, length)

    def _bring(self, file: str, start: int, end: int) -> None:
        """Afterwards [start, end) can be read from the open file."""
        if file in self._open and not self._here[file].missing(start, end):
            return
        ahead = max(end, min(self._end_of_tensor(file, end), start + AHEAD_BYTES))
        wanted = TensorRange(
            name=f"bytes {start} to {ahead}", file=file, offset=start, length=ahead - start, encoding=F32, shape=()
        )
        folder = self._cache.ensure(
            self.described.spec.fingerprint, self.described.files, [wanted], [self.source], _quiet, _never
        )
        if (former := self._open.pop(file, None)) is not None:
            former.close()
        self._open[file] = HeldFile.open(folder / file, file, self._stored[file])
        self._here[file].add(start, ahead)

    def _end_of_tensor(self, file: str, at: int) -> int:
        """Where the tensor ends that holds the byte before `at`."""
        ends = (t.offset + t.length for t in self.described.tensors if t.file == file and t.offset < at)
        return max((end for end in ends if end >= at), default=at)

    def close(self) -> None:
        with self._lock:
            self._cache.close()
            self.close_source()
            for held in self._open.values():
                held.close()
            self._open = {}
            self._here = {stored.file: Spans() for stored in self.described.files}


def _quiet(bytes_done: int, bytes_total: int) -> None:
    """The worker that asks reports its own progress."""


def _never() -> bool:
    return False


def lend_model(keeper: FileLender, described: Described, access: HubAccess, room: CacheRoom) -> None:
    """Lends a described model: from its directory, or through this machine's cache if it lies only at the Hub."""
    match described.sources[0]:
        case HubCommit() as commit:
            source = HubSource(HubRef.of(commit), access, described.files)
            keeper.lend(described.spec.fingerprint, HubPlace(described, source, room, source.close))
        case _:  # a directory of this machine, whatever comes after it
            keeper.lend_described(described)
