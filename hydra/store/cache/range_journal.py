"""The sidecar of one sparse file: which ranges of it are complete, with a checksum each.

One JSON object a line, appended by a single write. The first says of which file (size and tag), the others which chunk
is there or turned out to be damaged. Promises: a line that was torn by a kill, or that speaks of another version of
the file, is as if it had not been written. The checksum is what makes a chunk believed; so nothing is flushed per
chunk, and a machine that lost power fetches again what does not match. Refuses to know the data file.
"""

import errno
import json
import os
from hashlib import blake2b
from pathlib import Path
from typing import Any

import attrs

from hydra.protocol.model.model_spec import StoredFile

DIGEST_BYTES = 16
LINE_MAX_BYTES = 4096
CHUNK_MAX_BYTES = 64 << 20  # a line that claims more is nonsense: a chunk is read whole to be checked


@attrs.frozen
class Chunk:
    """Bytes [offset, offset + length) of the file, and their BLAKE2b digest (16 bytes, hex; RFC 7693)."""

    offset: int
    length: int
    digest: str


def digest_of(data: "bytes | bytearray | memoryview") -> str:
    return blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


@attrs.define(eq=False)
class Journal:
    """An open sidecar. Several processes may append to it at once."""

    _file: int
    chunks: set[Chunk]

    @classmethod
    def open(cls, path: Path, stored: StoredFile) -> "Journal":
        """Reads what is there and makes it ready to append. Raises OSError."""
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        journal, head = cls(opened, set()), _head(stored)
        try:
            raw = path.read_bytes()
            if raw and not raw.endswith(b"\n"):
                os.write(opened, b"\n")  # the end of a line that a kill tore
            if not journal._read(raw, head):
                journal._write(head)
        except BaseException:
            journal.close()
            raise
        return journal

    @classmethod
    def read(cls, path: Path, stored: StoredFile) -> set[Chunk]:
        """What it says now, by itself. Raises OSError."""
        journal = cls(-1, set())
        ours = journal._read(path.read_bytes(), _head(stored))
        return journal.chunks if ours else set()

    def _read(self, raw: bytes, head: dict[str, Any]) -> bool:
        """Takes in the lines; whether the last head among them is ours."""
        ours = False
        for line in raw.split(b"\n"):
            entry = _parsed(line)
            if "file" in entry:
                ours = entry == head
                if not ours:
                    self.chunks.clear()
            elif ours and (chunk := _chunk(entry.get("at"), entry.get("len"), entry.get("sum"), head["size"])):
                (self.chunks.discard if entry.get("bad") is True else self.chunks.add)(chunk)
        return ours

    def add(self, chunk: Chunk) -> None:
        """The chunk is in the file."""
        self.chunks.add(chunk)
        self._write({"at": chunk.offset, "len": chunk.length, "sum": chunk.digest})

    def retract(self, chunk: Chunk) -> None:
        """The file does not hold what this chunk says."""
        self.chunks.discard(chunk)
        self._write({"at": chunk.offset, "len": chunk.length, "sum": chunk.digest, "bad": True})

    def settle(self) -> None:
        """Durable when it returns."""
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)

    def _write(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        if os.write(self._file, line) < len(line):  # the rest would make no line of its own
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _head(stored: StoredFile) -> dict[str, Any]:
    return {"file": stored.file, "size": stored.size_bytes, "tag": stored.tag}


def _parsed(line: bytes) -> dict[str, Any]:
    """The object in a line; an empty one for whatever is none."""
    if len(line) > LINE_MAX_BYTES:
        return {}
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}


def _chunk(offset: object, length: object, digest: object, size_bytes: int) -> Chunk | None:
    if type(offset) is not int or type(length) is not int or type(digest) is not str:
        return None
    inside = offset >= 0 and 0 < length <= CHUNK_MAX_BYTES and offset + length <= size_bytes
    return Chunk(offset, length, digest) if inside and len(digest) == 2 * DIGEST_BYTES else None
