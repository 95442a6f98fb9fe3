"""One file from which chunks are handed out: read whole, and only while it is what it was.

Promises: bytes come out only if the file was in the state in which it was lent before they were read and after; of a
file of the range cache, which grows while it is lent, only if the checksums of its journal confirm them. Anything else
is a typed refusal. Refuses to know who asks, and of which model the file is.
"""

import os
import threading
from collections.abc import Iterable
from pathlib import Path

import attrs

from hydra.protocol.lent import Lent
from hydra.protocol.model.model_spec import StoredFile
from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.cache.range_file import JOURNAL_SUFFIX
from hydra.store.cache.range_journal import Chunk, Journal, digest_of
from hydra.store.files.file_identity import FileIdentity
from hydra.store.files.spans import Spans


def read_chunk(opened: int, file: str, file_bytes: int, offset: int, length: int) -> Lent:
    """All of [offset, offset + length) of an open file. Raises RefusalError: invalid_value, bad_model."""
    if offset < 0 or length < 0 or offset + length > file_bytes:
        what = f"{file} has {file_bytes} bytes; {offset} to {offset + length} were asked for"
        raise refuse("invalid_value", what, param="offset")
    data = bytearray(length)
    view, done = memoryview(data), 0
    while done < length:
        try:
            got = os.preadv(opened, [view[done:]], offset + done)
        except OSError as error:
            raise unreadable(file, error) from error
        if got == 0:
            raise refuse("bad_model", f"{file} ends at byte {offset + done}: it was cut short")
        done += got
    return Lent(data, file_bytes)


def read_unchanged(
    opened: int, file: str, identity: FileIdentity, offset: int, length: int
) -> tuple[Lent, FileIdentity]:
    """The same of a file that is in a known state; also the state it is in now. Raises bad_model if it has changed."""
    _still(opened, file, identity)
    lent = read_chunk(opened, file, identity.size_bytes, offset, length)
    return lent, _still(opened, file, identity)


def _still(opened: int, file: str, identity: FileIdentity) -> FileIdentity:
    try:
        now = FileIdentity.of(os.fstat(opened))
    except OSError as error:  # a network drive that went away
        raise unreadable(file, error) from error
    if not identity.still(now):
        raise refuse("bad_model", f"{file} was changed since the model was described: load the model anew")
    return now


def unreadable(file: str, error: OSError) -> RefusalError:
    return refuse("bad_model", f"{file} cannot be read: {error.strerror}")


@attrs.define(eq=False)
class HeldFile:
    """A file of a slice, held open, and the ranges that are lent of it. It stays the same file whatever becomes of its
    name. Any thread may read; `close` waits for the read in hand.
    """

    file: str
    opened: int | None
    identity: FileIdentity
    chunks: frozenset[Chunk] | None  # of the cache's journal; None: the file is none of the cache's
    spans: Spans = attrs.field(factory=Spans)
    lock: threading.Lock = attrs.field(factory=threading.Lock)
    _sure: tuple[Chunk, bytes] | None = attrs.field(default=None, init=False)  # the chunk that was checked last

    @classmethod
    def open(cls, real: Path, file: str, stored: StoredFile | None) -> "HeldFile":
        """`real` lies beside its journal if it is of the cache. Raises OSError."""
        journal = real.with_name(real.name + JOURNAL_SUFFIX)
        chunks = frozenset(Journal.read(journal, stored)) if stored is not None and journal.exists() else None
        opened = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        return cls(file, opened, FileIdentity.of(os.fstat(opened)), chunks)

    def is_same_as(self, other: "HeldFile") -> bool:
        """Whether both are one file, in one state. While both are open no other can be taken for it."""
        mine, its = self.identity, other.identity
        same = (mine.device, mine.inode, mine.size_bytes) == (its.device, its.inode, its.size_bytes)
        return same and (self.chunks is not None or its.still(mine))

    def lend(self, spans: Iterable[tuple[int, int]]) -> None:
        for start, end in spans:
            self.spans.add(start, end)

    def again(self) -> "HeldFile | None":
        """The same file held a second time; None when it is closed already. Raises OSError."""
        with self.lock:
            if self.opened is None:
                return None
            held = HeldFile(self.file, os.dup(self.opened), self.identity, self.chunks)
        held.lend(self.spans)
        return held

    def has(self, offset: int, length: int) -> bool:
        return not self.spans.missing(offset, offset + length)

    def read(self, offset: int, length: int) -> Lent:
        """Of what it `has`. Raises RefusalError: model_not_found, invalid_value, bad_model."""
        with self.lock:
            if self.opened is None:
                raise refuse("model_not_found", f"{self.file} is not held here any more")
            if self.chunks is not None:
                return self._read_checked(self.opened, self.chunks, offset, length)
            lent, self.identity = read_unchanged(self.opened, self.file, self.identity, offset, length)
            return lent

    def _read_checked(self, opened: int, chunks: frozenset[Chunk], offset: int, length: int) -> Lent:
        """Put together from whole chunks, each of which was read and confirmed just now."""
        data, came, end = bytearray(length), Spans(), offset + length
        for chunk in chunks:
            start, stop = max(offset, chunk.offset), min(end, chunk.offset + chunk.length)
            if start < stop and came.missing(start, stop):
                content = self._confirmed(opened, chunk)
                data[start - offset : stop - offset] = content[start - chunk.offset : stop - chunk.offset]
                came.add(start, stop)
        if came.missing(offset, end):
            raise refuse("model_not_found", f"bytes {offset} to {end} of {self.file} are not in the cache here")
        return Lent(data, self.identity.size_bytes)

    def _confirmed(self, opened: int, chunk: Chunk) -> bytes:
        if self._sure is not None and self._sure[0] == chunk:
            return self._sure[1]
        content = bytes(read_chunk(opened, self.file, self.identity.size_bytes, chunk.offset, chunk.length).data)
        if digest_of(content) != chunk.digest:
            what = (
                f"bytes {chunk.offset} to {chunk.offset + chunk.length} of {self.file} were damaged in the cache here"
            )
            raise refuse("bad_model", what)
        self._sure = (chunk, content)
        return content

    def close(self) -> None:
        with self.lock:
            opened, self.opened, self._sure = self.opened, None, None
        if opened is not None:
            os.close(opened)
