"""A machine's local copy of just those byte ranges that its workers need.

Promises: in the folder that `ensure` returns every wanted range can be read at its true offset, for each file of the
model is sparse and of the true size, and every byte of a wanted range was checked against its checksum or has just
come. After a kill only what was in flight is fetched again. Another tag or size of any file is another entry, so two
versions never mix. Refuses to know tensors, and where the sources have the bytes from.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from functools import partial
from hashlib import blake2b
from pathlib import Path

import attrs

from hydra.protocol.model.model_spec import StoredFile, TensorRange
from hydra.protocol.progress import Progress
from hydra.protocol.refusal import refuse
from hydra.store.cache.cache_room import CacheRoom, Hold, unusable
from hydra.store.cache.range_fetch import Fetch, FilePiece, Unsupplied
from hydra.store.cache.range_file import RangeFile
from hydra.store.cache.range_journal import Chunk
from hydra.store.cache.range_source import RangeSource
from hydra.store.cache.retry_policy import RetryPolicy
from hydra.store.files.file_identity import FileIdentity
from hydra.store.files.spans import cut

REQUEST_BYTES = 64 << 20  # of one GET
THREADS = 8
FILES_NAMED_MAX = 8  # in a refusal


@attrs.frozen
class _Sure:
    """What this process has checked or written of a file, and the state that it left the file in. Whatever happens to
    the file afterwards, be it that another process adds to it, makes it doubtful again."""

    state: FileIdentity
    chunks: set[Chunk]


@attrs.define(eq=False)
class RangeCache:
    """One process's view of the cache. `ensure` is called by one thread at a time.

    The entry that `ensure` returned last is held until the next call, or `close`: nobody removes it meanwhile.
    """

    room: CacheRoom
    policy: RetryPolicy = attrs.field(factory=RetryPolicy)
    threads: int = THREADS
    _hold: Hold | None = attrs.field(default=None, init=False)
    _sure: dict[Path, _Sure] = attrs.field(factory=dict, init=False)

    def ensure(
        self,
        key: str,
        files: Sequence[StoredFile],
        ranges: Sequence[TensorRange],
        sources: Sequence[RangeSource],
        progress: Progress,
        cancelled: Callable[[], bool],
    ) -> Path:
        """Brings `ranges` of the model called `key`, whose weights files are all of `files`, to this machine.

        Sources are asked in order; the next one is for what the one before could not give. Progress counts wanted
        bytes. Raises RefusalError: source_unreachable, access_denied, does_not_fit, bad_model, cancelled.
        """
        try:
            hold = self._take_hold(entry_name(key, files))
            with self._opened(hold.folder, files, ranges) as opened:
                fetch = Fetch(tuple(sources), self.policy, progress, cancelled)
                sure = self._check(opened, fetch)
                fetch.report()
                missing = _pieces(opened)
                if missing:
                    self.room.make_room(sum(piece.end - piece.start for piece in missing))
                    self._fetch(opened, fetch, missing)
            for file in opened:
                self._sure[file.path] = _Sure(file.state, sure[file])
            return hold.folder
        except OSError as error:
            raise unusable(self.room.root, error) from error

    def is_whole(self, key: str, files: Sequence[StoredFile], ranges: Sequence[TensorRange]) -> bool:
        """Whether all of `ranges` are on this machine already, checked; nothing is fetched for it, and nothing removed.
        The entry is held as by `ensure`. Raises RefusalError: bad_model, source_unreachable, does_not_fit.
        """
        try:
            hold = self._take_hold(entry_name(key, files))
            with self._opened(hold.folder, files, ranges) as opened:
                self._check(opened, Fetch((), self.policy, lambda done_bytes, total_bytes: None, lambda: False))
                return not _pieces(opened)
        except OSError as error:
            raise unusable(self.room.root, error) from error

    def close(self) -> None:
        """Nothing is in use any more."""
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    def _take_hold(self, name: str) -> Hold:
        hold = self.room.hold(name)
        self.close()
        self._hold = hold
        return hold

    @contextmanager
    def _opened(
        self, folder: Path, files: Sequence[StoredFile], ranges: Sequence[TensorRange]
    ) -> Iterator[list[RangeFile]]:
        by_name = {stored.file: stored for stored in files}
        wanted: dict[str, list[tuple[int, int]]] = {}
        for tensor in ranges:
            stored = by_name.get(tensor.file)
            if stored is None or tensor.offset + tensor.length > stored.size_bytes:
                raise refuse("bad_model", f"{tensor.name} lies outside the model's files: {tensor.file}.")
            wanted.setdefault(tensor.file, []).append((tensor.offset, tensor.offset + tensor.length))
        with ExitStack() as stack:
            opened = []
            for name, spans in sorted(wanted.items()):
                file = RangeFile.open(folder, by_name[name], spans)
                stack.callback(file.close)
                opened.append(file)
            yield opened

    def _check(self, opened: list[RangeFile], fetch: Fetch) -> dict[RangeFile, set[Chunk]]:
        """Reads what a former life left, and believes only what its checksum confirms. What this process left itself
        it believes while the file has not been touched since."""
        checks: list[Callable[[], None]] = []
        sure: dict[RangeFile, set[Chunk]] = {}
        for file in opened:
            before = self._sure.pop(file.path, None)
            sure[file] = before.chunks if before is not None and before.state == file.state else set()
            checks += [partial(_believe, file, chunk, sure[file]) for chunk in file.doubtful(sure[file])]
        self._in_parallel(fetch, checks)
        for file in opened:
            fetch.admit(file, sure[file])
        return sure

    def _fetch(self, opened: list[RangeFile], fetch: Fetch, missing: list[FilePiece]) -> None:
        try:
            self._in_parallel(fetch, [partial(fetch.bring, piece) for piece in missing])
        except Unsupplied as error:
            raise refuse(
                "source_unreachable",
                f"Of the weights are missing: {_still_missing(opened)}. Nobody gives them ({error}). What has come so "
                "far is kept: try again.",
            ) from error

    def _in_parallel(self, fetch: Fetch, jobs: Sequence[Callable[[], None]]) -> None:
        """Runs them all, or raises what the first failing one raised, after the others have stopped."""
        if not jobs:
            return
        with ThreadPoolExecutor(min(self.threads, len(jobs)), thread_name_prefix="hydra-fetch") as pool:
            running: list[Future[None]] = [pool.submit(job) for job in jobs]
            try:
                for done in as_completed(running):
                    done.result()
            except BaseException:
                first = fetch.failure
                fetch.stop()
                pool.shutdown(cancel_futures=True)
                if first is not None:
                    raise first from None
                raise


def entry_name(key: str, files: Sequence[StoredFile]) -> str:
    """The folder of one version: any difference in key, names, sizes or tags makes it another."""
    digest = blake2b(digest_size=16)
    for part in (key, *(f"{item.file}\0{item.size_bytes}\0{item.tag}" for item in sorted(files, key=_file_name))):
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def _file_name(stored: StoredFile) -> str:
    return stored.file


def _pieces(opened: Sequence[RangeFile]) -> list[FilePiece]:
    gaps = [(file, gap) for file in opened for gap in file.missing_wanted()]
    return [FilePiece(file, start, end) for file, gap in gaps for start, end in cut(gap, REQUEST_BYTES)]


def _still_missing(opened: Sequence[RangeFile]) -> str:
    sizes = [(file.stored.file, sum(end - start for start, end in file.missing_wanted())) for file in opened]
    sizes_short = [f"{size} bytes of {file}" for file, size in sizes if size]
    more = f" and of {len(sizes_short) - FILES_NAMED_MAX} other files" if len(sizes_short) > FILES_NAMED_MAX else ""
    return ", ".join(sizes_short[:FILES_NAMED_MAX]) + more


def _believe(file: RangeFile, chunk: Chunk, sure: set[Chunk]) -> None:
    if file.check(chunk):
        sure.add(chunk)
