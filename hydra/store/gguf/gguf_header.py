"""The header of a GGUF file (versions 2 and 3, little-endian), read without believing it.

Promises: counts and lengths are bounded before anything is allocated or walked; every tensor it returns lies inside the
file, aligned, overlaps no other, and is exactly as long as its shape and type demand. A beginning that is too short is
no fault: the answer then says how many bytes are needed, so that a remote file is read by growing ranges. Refuses to
know what any key or tensor means.
"""

import os
import struct
from pathlib import Path

import attrs

from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.files.directory import shown
from hydra.store.files.foreign_file import recognise_weights
from hydra.store.formats.safetensors_header import Header, StoredTensor
from hydra.store.gguf.ggml_types import GGML_TYPES, unknown_type
from hydra.store.gguf.gguf_metadata import META_ITEM_BYTES, MetaArray, Metadata, MetaValue

MAGIC = b"GGUF"
VERSIONS = (2, 3)
HEADER_MAX_BYTES = 64 << 20  # the largest vocabularies, with their merges, take about 12 MB
FIRST_BYTES = 1 << 20  # enough for most headers; then four times as many, and so on
TENSORS_MAX, KEYS_MAX = 100_000, 10_000
STRINGS_MAX = 2_000_000  # of all arrays: a vocabulary of 262,144 tokens and its 514,906 merges is the largest published
NAME_MAX_BYTES, KEY_MAX_BYTES, DIMS_MAX, DIM_MAX = 256, 65_535, 4, 1 << 40
ALIGNMENT, ALIGNMENT_MAX = 32, 1 << 16

_STRING, _ARRAY, _BOOL = 8, 9, 7
_FLOATS = {6: "f", 12: "d"}
_INTEGERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", _BOOL: "B", 10: "Q", 11: "q"}


@attrs.frozen(kw_only=True)
class GgufHeader:
    """What one file says it holds, checked; `raw` are its bytes up to the last tensor's entry."""

    metadata: Metadata
    tensors: dict[str, StoredTensor]  # `shape` is [rows, columns], the other way round than in the file
    raw: bytes
    file_bytes: int

    @property
    def as_weights(self) -> Header:
        """In the words that all weights files have."""
        return Header(tensors=self.tensors, raw=self.raw, file_bytes=self.file_bytes)


@attrs.frozen
class NeedMore:
    """The beginning that was given is too short; at least so many bytes of the file are needed."""

    n_bytes: int


class _TooShort(Exception):
    def __init__(self, n_bytes: int) -> None:
        super().__init__(n_bytes)
        self.n_bytes = n_bytes


def read_gguf_header(path: Path, file: str) -> GgufHeader:
    """Of a file of this machine; `file` is what refusals call it. Raises RefusalError bad_model."""
    try:
        with path.open("rb") as stream:
            file_bytes = os.fstat(stream.fileno()).st_size
            opening = stream.read(FIRST_BYTES)
            while isinstance(header := parse_gguf_header(opening, file, file_bytes), NeedMore):
                more = stream.read(next_bytes(header.n_bytes, len(opening)) - len(opening))
                if not more:
                    raise _bad(file, f"ended at byte {len(opening)} while it was read")
                opening += more
            return header
    except OSError as error:
        raise _bad(file, f"cannot be read: {error}") from error


def next_bytes(needed: int, had: int) -> int:
    """How much of a file to read next, where `had` bytes were too few."""
    return max(needed, min(4 * had, HEADER_MAX_BYTES))


def parse_gguf_header(opening: bytes, file: str, file_bytes: int) -> GgufHeader | NeedMore:
    """The header in the first bytes of a file of `file_bytes` bytes. Raises RefusalError bad_model."""
    try:
        return _parse(_Cursor(opening, file, file_bytes))
    except _TooShort as short:
        return NeedMore(short.n_bytes)


def _parse(cursor: "_Cursor") -> GgufHeader:
    n_tensors, n_keys = _opening(cursor)
    values: dict[str, MetaValue] = {}
    for number in range(n_keys):
        key = cursor.text(f"the name of key {number + 1} of {n_keys}", KEY_MAX_BYTES)
        if key in values:
            raise cursor.bad(f"gives the key {shown(key)} twice")
        values[key] = _value(cursor, f"the key {shown(key)}")
    metadata = Metadata(cursor.file, cursor.raw, values)
    alignment = metadata.integer("general.alignment", 8, ALIGNMENT_MAX, ALIGNMENT)
    if alignment & (alignment - 1):
        raise cursor.bad(f"has the alignment {alignment}, which is no power of 2")
    entries: dict[str, StoredTensor] = {}
    for number in range(n_tensors):
        entry = _entry(cursor, f"tensor {number + 1} of {n_tensors}", alignment)
        if entry.name in entries:
            raise cursor.bad(f"has the tensor {shown(entry.name)} twice")
        entries[entry.name] = entry
    start = -(-cursor.at // alignment) * alignment
    tensors = {name: attrs.evolve(entry, offset=start + entry.offset) for name, entry in entries.items()}
    _check_layout(cursor, tensors)
    raw = cursor.raw[: cursor.at]
    metadata = Metadata(cursor.file, raw, values)
    return GgufHeader(metadata=metadata, tensors=tensors, raw=raw, file_bytes=cursor.file_bytes)


def _opening(cursor: "_Cursor") -> tuple[int, int]:
    """(tensors, keys), bounded."""
    if not cursor.raw.startswith(MAGIC):
        if len(cursor.raw) < len(MAGIC) and cursor.file_bytes >= len(MAGIC):
            raise _TooShort(FIRST_BYTES)
        foreign = recognise_weights(cursor.raw)
        what = "does not begin with 'GGUF', so it is no GGUF file" if foreign is None else str(foreign).rstrip(".")
        raise cursor.bad(what)
    cursor.at = len(MAGIC)
    version = cursor.unpack("<I", "its version")
    if version not in VERSIONS:
        if version.to_bytes(4, "big") in (known.to_bytes(4, "little") for known in (1, *VERSIONS)):
            raise cursor.bad("is big-endian; only little-endian files are read. Convert the model again")
        known = " and ".join(map(str, VERSIONS))
        raise cursor.bad(f"is of version {version}; versions {known} are read. Convert the model again")
    n_tensors, n_keys = cursor.unpack("<Q", "its tensor count"), cursor.unpack("<Q", "its key count")
    if n_tensors > TENSORS_MAX:
        raise cursor.bad(f"announces {n_tensors} tensors; at most {TENSORS_MAX} are read")
    if n_keys > KEYS_MAX:
        raise cursor.bad(f"announces {n_keys} keys; at most {KEYS_MAX} are read")
    return n_tensors, n_keys


def _value(cursor: "_Cursor", what: str) -> MetaValue:
    kind = cursor.unpack("<I", what)
    if kind in META_ITEM_BYTES:
        return _scalar(cursor, kind, what)
    if kind == _STRING:
        return cursor.text(what, HEADER_MAX_BYTES)
    if kind != _ARRAY:
        raise cursor.bad(f"gives {what} the unknown type {kind}")
    item, count = cursor.unpack("<I", what), cursor.unpack("<Q", what)
    start = cursor.at
    if item in META_ITEM_BYTES:
        cursor.skip(count * META_ITEM_BYTES[item], what)
    elif item == _STRING:
        cursor.skip_strings(count, what)
    else:
        raise cursor.bad(f"gives {what} an array of type {item}; only arrays of numbers and texts are read")
    return MetaArray(item=item, count=count, start=start)


def _scalar(cursor: "_Cursor", kind: int, what: str) -> MetaValue:
    if kind in _FLOATS:
        return cursor.fraction(f"<{_FLOATS[kind]}", what)
    value = cursor.unpack(f"<{_INTEGERS[kind]}", what)
    if kind != _BOOL:
        return value
    if value not in (0, 1):
        raise cursor.bad(f"gives {what} the truth value {value}")
    return bool(value)


def _entry(cursor: "_Cursor", what: str, alignment: int) -> StoredTensor:
    """`offset` counts from the beginning of the data, as in the file."""
    name = cursor.text(f"the name of {what}", NAME_MAX_BYTES)
    what = f"the tensor {shown(name)}"
    n_dims = cursor.unpack("<I", what)
    if not 1 <= n_dims <= DIMS_MAX:
        raise cursor.bad(f"gives {what} {n_dims} dimensions; 1 to {DIMS_MAX} are possible")
    shape = tuple(reversed([cursor.unpack("<Q", what) for _ in range(n_dims)]))
    if not all(1 <= dim <= DIM_MAX for dim in shape):
        raise cursor.bad(f"gives {what} the shape {shape}")
    number, offset = cursor.unpack("<I", what), cursor.unpack("<Q", what)
    kind = GGML_TYPES.get(number)
    if kind is None:
        raise cursor.unsupported(f"gives {what} the type {unknown_type(number)}")
    if shape[-1] % kind.columns:
        raise cursor.bad(f"gives {what} rows of {shape[-1]} columns, which are no whole blocks of {kind.name}")
    if offset % alignment:
        raise cursor.bad(f"puts {what} at byte {offset} of its data, which is no multiple of {alignment}")
    n_bytes = kind.block_bytes
    for dim in (*shape[:-1], shape[-1] // kind.columns):
        n_bytes *= dim
    return StoredTensor(name=name, file_dtype=kind.name, shape=shape, offset=offset, length=n_bytes)


def _check_layout(cursor: "_Cursor", tensors: dict[str, StoredTensor]) -> None:
    reached = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.length)):
        end = tensor.offset + tensor.length
        if end > cursor.file_bytes:
            what = f"puts {shown(tensor.name)} up to byte {end}, but ends at {cursor.file_bytes}"
            raise cursor.bad(f"{what}: it was cut short, or its download has not ended. Complete the download")
        if tensor.offset < reached:
            raise cursor.bad(f"lets {shown(tensor.name)} overlap the tensor before it")
        reached = end


@attrs.define
class _Cursor:
    """A place in the beginning of a file. Every reader raises _TooShort, and RefusalError bad_model for what cannot
    be, naming `what` it was about to read."""

    raw: bytes
    file: str
    file_bytes: int
    at: int = 0
    strings: int = 0

    def unpack(self, form: str, what: str) -> int:
        """One whole number."""
        self._need(struct.calcsize(form), what)
        value: int = struct.unpack_from(form, self.raw, self.at)[0]
        self.at += struct.calcsize(form)
        return value

    def fraction(self, form: str, what: str) -> float:
        self._need(struct.calcsize(form), what)
        value: float = struct.unpack_from(form, self.raw, self.at)[0]
        self.at += struct.calcsize(form)
        return value

    def text(self, what: str, bytes_max: int) -> str:
        n_bytes = self.unpack("<Q", what)
        if n_bytes > bytes_max:
            raise self.bad(f"gives {what} a text of {n_bytes} bytes; at most {bytes_max} are read")
        self._need(n_bytes, what)
        self.at += n_bytes
        try:
            return self.raw[self.at - n_bytes : self.at].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.bad(f"gives {what} a text that is not UTF-8") from error

    def skip(self, n_bytes: int, what: str) -> None:
        self._need(n_bytes, what)
        self.at += n_bytes

    def skip_strings(self, count: int, what: str) -> None:
        self.strings += count
        if self.strings > STRINGS_MAX:
            raise self.bad(f"gives {what} {count} texts; at most {STRINGS_MAX} are read in all")
        self._need(8 * count, what)
        raw, at, end, length_at = self.raw, self.at, len(self.raw), struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > end:
                break
            at += 8 + length_at(raw, at)[0]
        else:
            if at <= end:
                self.at = at
                return
        self.skip(max(at - self.at, 8 * count, end - self.at + 1), what)  # which says what is wrong, or lacking

    def _need(self, n_bytes: int, what: str) -> None:
        end = self.at + n_bytes
        if end <= len(self.raw):
            return
        if end > HEADER_MAX_BYTES:
            raise self.bad(f"gives {what} {n_bytes} bytes; a header has at most {HEADER_MAX_BYTES}")
        if end > self.file_bytes:
            raise self.bad(f"is cut short: {what} ends at byte {end} of {self.file_bytes}. Complete the download")
        raise _TooShort(end)

    def bad(self, what: str) -> RefusalError:
        return _bad(self.file, what)

    def unsupported(self, what: str) -> RefusalError:
        return refuse("unsupported", f"The GGUF file {self.file} {what}.")


def _bad(file: str, what: str) -> RefusalError:
    return refuse("bad_model", f"The GGUF file {file} {what}.")
