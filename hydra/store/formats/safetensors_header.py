"""The header of a safetensors file, read without believing it.

Promises: every tensor it returns lies inside the file, overlaps no other, leaves no gap, and is exactly as long as its
shape and dtype demand; a file of another kind is called by its name. Refuses to know tensor data, models, and which
tensors anybody wants.
"""

import os
from pathlib import Path
from typing import Any

import attrs

from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.files.directory import parse_object, shown
from hydra.store.files.foreign_file import Foreign, recognise_weights

HEADER_MAX_BYTES = 8 * 2**20
TENSORS_MAX = 100_000
DIMS_MAX = 16
LENGTH_BYTES = 8  # the little-endian length that opens the file

_ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
}


@attrs.frozen(kw_only=True)
class StoredTensor:
    """One entry of a header. `file_dtype` is the file's own name for it, of an encoding that we know or of another;
    `offset` counts from the start of the file."""

    name: str
    file_dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


@attrs.frozen(kw_only=True)
class Header:
    """What one file says it holds, checked; `raw` is the header's JSON as stored."""

    tensors: dict[str, StoredTensor]
    raw: bytes
    file_bytes: int


def read_weights_header(path: Path, file: str) -> Header:
    """Reads and checks the header of `path`; `file` is what refusals call it."""
    try:
        with path.open("rb") as stream:
            opening = stream.read(LENGTH_BYTES)
            file_bytes = os.fstat(stream.fileno()).st_size
            opening += stream.read(min(int.from_bytes(opening, "little"), HEADER_MAX_BYTES))
    except OSError as error:
        raise _bad(file, f"cannot be read: {error}") from error
    return parse_header(opening, file, file_bytes)


def parse_header(opening: bytes, file: str, file_bytes: int) -> Header:
    """The header in the first bytes of a file of `file_bytes` bytes. Raises RefusalError bad_model."""
    length = int.from_bytes(opening[:LENGTH_BYTES], "little")
    raw = opening[LENGTH_BYTES : LENGTH_BYTES + length]
    if (problem := _problem(opening, length, raw)) is not None:
        raise _bad(file, problem) if (known := recognise_weights(opening)) is None else _foreign(file, known)
    entries = parse_object(raw, file)
    entries.pop("__metadata__", None)
    if len(entries) > TENSORS_MAX:
        raise _bad(file, f"lists {len(entries)} tensors; at most {TENSORS_MAX} are read")
    start = LENGTH_BYTES + length
    tensors = {name: _entry(file, name, value, start) for name, value in entries.items()}
    _check_layout(file, tensors, start, file_bytes)
    return Header(tensors=tensors, raw=raw, file_bytes=file_bytes)


def _problem(opening: bytes, length: int, raw: bytes) -> str | None:
    """Why a file that opens like this is not opened as safetensors."""
    if len(opening) < LENGTH_BYTES:
        return f"is cut short: it has {len(opening)} bytes"
    if length > HEADER_MAX_BYTES:
        return f"announces a header of {length} bytes; at most {HEADER_MAX_BYTES} are read"
    if len(raw) < length:
        return f"is cut short: its header has {len(raw)} of {length} bytes"
    return None if raw.startswith(b"{") else "does not begin its header with '{', so it is no safetensors file"


def _entry(file: str, name: str, value: Any, start: int) -> StoredTensor:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _bad(file, f"does not give dtype, shape and data_offsets, and nothing else, for {shown(name)}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise _bad(file, f"gives {shown(name)} the unknown dtype {shown(dtype)}")
    if not _sizes(shape) or len(shape) > DIMS_MAX:
        raise _bad(file, f"gives {shown(name)} no valid shape")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _bad(file, f"gives {shown(name)} no valid data_offsets")
    length = offsets[1] - offsets[0]
    needed = _ITEM_BYTES[dtype]
    for dim in shape:
        needed *= dim
    if needed != length:
        raise _bad(file, f"gives {shown(name)} {length} bytes where its shape {shape} in {dtype} needs {needed}")
    return StoredTensor(name=name, file_dtype=dtype, shape=tuple(shape), offset=start + offsets[0], length=length)


def _sizes(value: Any) -> bool:
    """Whether `value` is a list of unsigned 64-bit integers; bool is none, though Python thinks so."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**64 for item in value)


def _check_layout(file: str, tensors: dict[str, StoredTensor], start: int, file_bytes: int) -> None:
    """The data is tiled by the tensors from the end of the header to the end of the file."""
    for tensor in tensors.values():
        end = tensor.offset + tensor.length
        if end > file_bytes:
            what = f"puts {shown(tensor.name)} up to byte {end}, but ends at {file_bytes}"
            raise _bad(file, f"{what}: it was cut short, or its download has not ended. Complete the download")
    reached = start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.length)):
        if tensor.offset < reached:
            raise _bad(file, f"lets {shown(tensor.name)} overlap the tensor before it")
        if tensor.offset > reached:
            raise _bad(file, f"leaves a gap before {shown(tensor.name)}")
        reached = tensor.offset + tensor.length
    if reached != file_bytes:
        raise _bad(file, f"has {file_bytes - reached} bytes behind its last tensor")


def _foreign(file: str, known: Foreign) -> RefusalError:
    return refuse("bad_model", f"The weights file {file} {known}")


def _bad(file: str, what: str) -> RefusalError:
    return refuse("bad_model", f"The weights file {file} {what}.")
