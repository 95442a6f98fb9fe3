"""One weights file as far as it has come: sparse, of the true size, beside the journal of what is in it.

Promises: `missing` names every byte whose checksum has not been seen to hold in this process or just now been written;
a file that was cut or altered on the disk is found out and mended. Refuses to know where bytes come from.
"""

import os
import threading
from collections.abc import Iterable
from pathlib import Path

import attrs

from hydra.protocol.model.model_spec import StoredFile
from hydra.store.cache.range_journal import Chunk, Journal, digest_of
from hydra.store.files.file_identity import FileIdentity
from hydra.store.files.spans import Span, Spans

JOURNAL_SUFFIX = ".ranges"


@attrs.define(eq=False)
class RangeFile:
    """Several threads may put and ask at once."""

    path: Path
    stored: StoredFile
    wanted: Spans
    state: FileIdentity  # as it was found, any mending done; once it is closed, as it was left
    whole: threading.Lock = attrs.field(factory=threading.Lock, init=False)  # held while all of the file is fetched
    _data: int
    _journal: Journal
    _held: Spans = attrs.field(factory=Spans, init=False)
    _changed: bool = attrs.field(default=False, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    @classmethod
    def open(cls, folder: Path, stored: StoredFile, wanted: Iterable[Span]) -> "RangeFile":
        """Makes data file and journal where there are none. Raises OSError."""
        path = folder / stored.file
        data = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            if os.fstat(data).st_size != stored.size_bytes:
                os.ftruncate(data, stored.size_bytes)
            journal = Journal.open(folder / f"{stored.file}{JOURNAL_SUFFIX}", stored)
        except BaseException:
            os.close(data)
            raise
        state = FileIdentity.of(os.fstat(data))
        return cls(path=path, stored=stored, wanted=Spans.of(wanted), state=state, data=data, journal=journal)

    def doubtful(self, sure: set[Chunk]) -> list[Chunk]:
        """Chunks that hold wanted bytes and are to be checked; those in `sure` are believed as they are."""
        touched = [c for c in self._journal.chunks if self.wanted.overlap(c.offset, c.offset + c.length)]
        for chunk in touched:
            if chunk in sure:
                self._held.add(chunk.offset, chunk.offset + chunk.length)
        return [chunk for chunk in touched if chunk not in sure]

    def check(self, chunk: Chunk) -> bool:
        """Whether the file still holds what the journal says; if not, the journal is corrected."""
        data = os.pread(self._data, chunk.length, chunk.offset)
        holds = len(data) == chunk.length and digest_of(data) == chunk.digest
        with self._lock:
            if holds:
                self._held.add(chunk.offset, chunk.offset + chunk.length)
            else:
                self._journal.retract(chunk)
                self._changed = True
        return holds

    def missing(self, start: int, end: int) -> list[Span]:
        with self._lock:
            return self._held.missing(start, end)

    def missing_wanted(self) -> list[Span]:
        """The wanted bytes that are not here, neighbours joined, in order."""
        with self._lock:
            return [gap for start, end in self.wanted for gap in self._held.missing(start, end)]

    def put(self, offset: int, data: memoryview) -> tuple[int, list[Chunk]]:
        """Writes what of `data` is missing. Returns how many wanted bytes that was, and the chunks written."""
        wanted_bytes, written = 0, []
        for start, end in self.missing(offset, offset + len(data)):
            part = data[start - offset : end - offset]
            chunk = Chunk(start, end - start, digest_of(part))
            _pwrite_all(self._data, part, start)
            with self._lock:
                wanted_bytes += sum(self.wanted.overlap(a, b) for a, b in self._held.missing(start, end))
                self._journal.add(chunk)
                self._held.add(start, end)
                self._changed = True
            written.append(chunk)
        return wanted_bytes, written

    def close(self) -> None:
        """What was written is durable when it returns."""
        try:
            if self._changed:
                os.fsync(self._data)
                self._journal.settle()
            self.state = FileIdentity.of(os.fstat(self._data))
        finally:
            os.close(self._data)
            self._journal.close()


def _pwrite_all(file: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written
