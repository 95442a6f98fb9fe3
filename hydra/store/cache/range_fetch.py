"""Fetching what is missing: from the first source that gives it, chunk by chunk, in spite of everything.

Promises: a chunk that has come is journaled at once, also when the body it came in was cut; a source that fails is
tried again for a while, and then the next one; a refusal or a cancellation stops all threads soon. Refuses to know
the cache around it.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from hydra.protocol.progress import Progress
from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.cache.range_file import RangeFile
from hydra.store.cache.range_journal import Chunk
from hydra.store.cache.range_source import RangeIgnored, RangeSource, SourceFault, SourceSilent, SourceUnfit
from hydra.store.cache.retry_policy import Retry, RetryPolicy

CHUNK_BYTES = 4 << 20  # what a kill can cost per thread


class Unsupplied(Exception):
    """No source gives a piece; the text says of each why."""


@attrs.frozen(eq=False)
class FilePiece:
    """[start, end) of one file, to be brought by one thread."""

    file: RangeFile
    start: int
    end: int


@attrs.define(eq=False)
class Fetch:
    """One `ensure` at work; shared by its threads."""

    sources: tuple[RangeSource, ...]
    policy: RetryPolicy
    progress: Progress
    cancelled: Callable[[], bool]
    failure: BaseException | None = attrs.field(default=None, init=False)  # the first: the others follow from it
    _sure: dict[RangeFile, set[Chunk]] = attrs.field(factory=dict, init=False)
    _whole_only: set[tuple[str, RangeFile]] = attrs.field(factory=set, init=False)
    _spent: set[str] = attrs.field(factory=set, init=False)  # sources that failed somebody: asked last
    _heard: set[str] = attrs.field(factory=set, init=False)  # sources that have said anything
    _done_bytes: int = attrs.field(default=0, init=False)
    _total_bytes: int = attrs.field(default=0, init=False)
    _stopped: threading.Event = attrs.field(factory=threading.Event, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def admit(self, file: RangeFile, sure: set[Chunk]) -> None:
        """This file counts; `sure` gets what is written to it. Called before `bring`, by one thread."""
        self._sure[file] = sure
        total = file.wanted.total()
        self._total_bytes += total
        self._done_bytes += total - sum(end - start for start, end in file.missing_wanted())

    def report(self) -> None:
        """Says how far it is."""
        with self._lock:
            self.progress(self._done_bytes, self._total_bytes)

    def stop(self) -> None:
        """Threads leave at their next piece of data or wait."""
        self._stopped.set()

    def bring(self, piece: FilePiece) -> None:
        """Asks one source after the other. Raises RefusalError or Unsupplied; the other threads then stop too."""
        try:
            self._check_wanted()
            self._bring(piece)
        except BaseException as error:
            with self._lock:
                self.failure = self.failure or error
            self.stop()
            raise

    def _bring(self, piece: FilePiece) -> None:
        """Goes briefly through all sources, and then, if none gave it, once more with all patience for those of which
        anything has been heard."""
        faults: dict[str, SourceFault] = {}
        rounds = (self.policy.brief(), self.policy) if len(self.sources) > 1 else (self.policy,)
        for policy in rounds:
            for source in sorted(self.sources, key=lambda source: source.name in self._spent):
                if self._hopeless(source, faults.get(source.name)):
                    continue
                try:
                    self._from(source, piece, policy)
                    return
                except SourceFault as fault:
                    faults[source.name] = fault
                    if not isinstance(fault, SourceUnfit):
                        self._spent.add(source.name)
        raise Unsupplied("; ".join(f"{name}: {fault}" for name, fault in faults.items()) or "there is no source")

    def _hopeless(self, source: RangeSource, fault: SourceFault | None) -> bool:
        if isinstance(fault, SourceSilent):
            return source.name not in self._heard
        return isinstance(fault, SourceUnfit)

    def _from(self, source: RangeSource, piece: FilePiece, policy: RetryPolicy) -> None:
        """Raises SourceFault once patience with this source is at its end."""
        attempt = Retry(policy, self._leave, heard=source.name in self._heard)
        while gaps := piece.file.missing(piece.start, piece.end):
            self._check_wanted()
            whole = (source.name, piece.file) in self._whole_only
            try:
                if whole:
                    self._whole_file(source, piece, attempt)
                else:
                    for start, end in gaps:
                        self._take(source, piece.file, start, end, attempt)
            except RangeIgnored as fault:
                if whole:
                    raise SourceUnfit("gives neither ranges nor the whole file") from fault
                self._whole_only.add((source.name, piece.file))
            except SourceFault as fault:
                self._check_wanted()
                attempt.wait_or_raise(fault)
            finally:
                if attempt.heard:
                    self._heard.add(source.name)

    def _whole_file(self, source: RangeSource, piece: FilePiece, attempt: Retry) -> None:
        """One thread takes all of it; whoever waited for the same file then finds its piece there."""
        with piece.file.whole:
            if piece.file.missing(piece.start, piece.end):
                self._take(source, piece.file, 0, piece.file.stored.size_bytes, attempt)

    def _take(self, source: RangeSource, file: RangeFile, start: int, end: int, attempt: Retry) -> None:
        """One transfer of [start, end). What came before it broke is kept."""
        at, buffer = start, bytearray()
        stream = source.read(file.stored.file, start, end - start)
        try:
            for data in self._flowing(stream, attempt):
                self._check_wanted()
                if at + len(buffer) + len(data) > end:
                    raise SourceUnfit(f"sends more of {file.stored.file} than it was asked for")
                buffer += data
                while len(buffer) >= CHUNK_BYTES:
                    self._put(file, at, buffer[:CHUNK_BYTES])
                    del buffer[:CHUNK_BYTES]
                    at += CHUNK_BYTES
        finally:
            _close(stream)
            if buffer:
                self._put(file, at, buffer)
                at += len(buffer)
        if at < end:
            raise SourceFault(f"the body of {file.stored.file} ended at byte {at} instead of {end}")

    def _flowing(self, stream: Iterator[bytes], attempt: Retry) -> Iterator[bytes]:
        """The stream, as long as it does more than trickle. Raises SourceFault."""
        policy, since_s, came = self.policy, self.policy.now(), 0
        for data in stream:
            attempt.heard = True
            came += len(data)
            if came >= policy.floor_bytes:
                attempt.progressed()
            if policy.now() - since_s > policy.stall_s:
                if came < policy.floor_bytes:
                    raise SourceFault(f"only {came} bytes in {policy.stall_s:g} s")
                since_s, came = policy.now(), 0
            yield data

    def _put(self, file: RangeFile, at: int, data: bytearray) -> None:
        wanted_bytes, written = file.put(at, memoryview(data))
        with self._lock:
            self._sure[file].update(written)
            self._done_bytes += wanted_bytes
            self.progress(self._done_bytes, self._total_bytes)

    def _leave(self) -> bool:
        return self._stopped.is_set() or self.cancelled()

    def _check_wanted(self) -> None:
        if self._leave():
            raise RefusalError(CANCELLED.refusal)


CANCELLED = refuse("cancelled", "The download was called off; what has come so far is kept.")


def _close(stream: Any) -> None:
    """Ends the transfer: a generator is closed, any other iterator is let go."""
    close = getattr(stream, "close", None)
    if close is not None:
        close()
