"""All that one GGUF model says of itself: the metadata, and the tensors of all its files by name.

Promises: no tensor twice, the parts of a split model whole and in order. Refuses to know what any tensor is for, and
where the files are: small vectors are read through what it is given.
"""

import re
from collections.abc import Callable, Mapping

import attrs
import numpy as np

from hydra.protocol.model.model_name import GGUF_SUFFIX
from hydra.protocol.refusal import refuse
from hydra.store.files.directory import shown
from hydra.store.formats.safetensors_header import StoredTensor
from hydra.store.gguf.gguf_header import GgufHeader
from hydra.store.gguf.gguf_metadata import Metadata, shortest

PARTS_MAX = 999
VECTOR_MAX_BYTES = 1 << 20

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.ASCII | re.IGNORECASE)

ReadBytes = Callable[[str, int, int], bytes]  # of a file: so many bytes from an offset on


def is_gguf(name: str) -> bool:
    return name.lower().endswith(GGUF_SUFFIX)


def first_part(file: str) -> str:
    """The file that opens the model which `file` is a part of."""
    match = _PART.fullmatch(file)
    return file if match is None else f"{match['stem']}-00001-of-{match['count']}{file[-len(GGUF_SUFFIX) :]}"


def gguf_parts(file: str) -> tuple[str, ...]:
    """The names of all files of a model, of which `file` is the first or the only one."""
    match = _PART.fullmatch(file)
    if match is None:
        return (file,)
    count = int(match["count"])
    if not 1 <= count <= PARTS_MAX:
        raise refuse("bad_model", f"The GGUF file {file} says that it is one of {count}; 1 to {PARTS_MAX} are read.")
    ending = file[-len(GGUF_SUFFIX) :]
    return tuple(f"{match['stem']}-{number:05d}-of-{match['count']}{ending}" for number in range(1, count + 1))


@attrs.frozen
class StoredIn:
    """A tensor, and the file that it is in."""

    file: str
    tensor: StoredTensor


@attrs.frozen(kw_only=True)
class GgufContent:
    """`headers` by file, the first one first: its metadata is that of the model."""

    headers: Mapping[str, GgufHeader]
    tensors: Mapping[str, StoredIn]
    read: ReadBytes

    @classmethod
    def of(cls, headers: Mapping[str, GgufHeader], read: ReadBytes) -> "GgufContent":
        """Raises RefusalError bad_model."""
        tensors: dict[str, StoredIn] = {}
        for number, (file, header) in enumerate(headers.items()):
            _check_part(header.metadata, number, len(headers))
            for name, tensor in header.tensors.items():
                if name in tensors:
                    raise refuse("bad_model", f"{shown(name)} is in {tensors[name].file} and again in {file}.")
                tensors[name] = StoredIn(file, tensor)
        if not tensors:
            raise refuse("bad_model", f"The GGUF file {next(iter(headers))} holds no tensors.")
        return cls(headers=headers, tensors=tensors, read=read)

    @property
    def file(self) -> str:
        return next(iter(self.headers))

    @property
    def metadata(self) -> Metadata:
        return self.headers[self.file].metadata

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises RefusalError bad_model where there is no such tensor."""
        if name not in self.tensors:
            raise refuse("bad_model", f"The GGUF file {self.file} lacks the tensor {name!r}.")
        return self.tensors[name].tensor.shape

    def vector(self, name: str) -> tuple[float, ...]:
        """The numbers of a small tensor. Raises RefusalError bad_model."""
        stored = self.tensors[name]
        tensor = stored.tensor
        if tensor.file_dtype != "F32" or len(tensor.shape) != 1 or tensor.length > VECTOR_MAX_BYTES:
            what = f"{name!r} in {stored.file} is {tensor.file_dtype} of shape {tensor.shape}"
            raise refuse("unsupported", f"{what}; only a short row of F32 is read there.")
        raw = self.read(stored.file, tensor.offset, tensor.length)
        return tuple(shortest(float(number)) for number in np.frombuffer(raw, "<f4"))


def _check_part(metadata: Metadata, number: int, count: int) -> None:
    """That a file is the part that its name says, as far as it says so itself."""
    own_number = metadata.integer("split.no", 0, 1 << 16, number)
    own_count = metadata.integer("split.count", 0, 1 << 16, count) or 1
    if (own_number, own_count) != (number, count):
        what = f"says that it is part {own_number + 1} of {own_count}, not {number + 1} of {count}"
        raise refuse("bad_model", f"The GGUF file {metadata.file} {what}: give the first file by its own name.")
