"""The weights files of one model, as far as describing it needs them: names, headers, and a tag for the content.

Promises: `StoredFile.tag` is another one whenever a header differs, and (as far as can be told without reading it all)
whenever the weights do. Refuses to know tensors' meaning, and how weights are read.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import attrs

from hydra.protocol.refusal import refuse
from hydra.store.files.directory import blob_name, locate
from hydra.store.formats.safetensors_header import Header, StoredTensor, read_weights_header
from hydra.store.models.stored_tensors import Located

PROBE_BYTES = 4096
COMPARED_BYTES = 1 << 20


class WeightFiles(Protocol):
    """One model's files, on this disk or only at the Hub. `folder` holds the small ones, config.json among them."""

    @property
    def folder(self) -> Path: ...

    def header(self, file: str) -> Header | None:
        """None when there is no such file. Raises RefusalError: bad_model."""

    def tag(self, file: str, header: Header, tensors: Iterable[StoredTensor]) -> str:
        """What StoredFile.tag promises; `tensors` are those of the file that the model asks for."""

    def same_bytes(self, one: Located, other: Located) -> bool:
        """Whether two tensors of one length hold the same bytes, all of them compared; False also where they are not
        here to be compared. Raises RefusalError: bad_model."""

    def names(self) -> Iterable[str]:
        """Every file of the model, for a remedy that names what is there instead."""


@attrs.frozen
class LocalFiles:
    """A model directory."""

    folder: Path

    def header(self, file: str) -> Header | None:
        path = locate(self.folder, file)
        return None if path is None else read_weights_header(path, file)

    def tag(self, file: str, header: Header, tensors: Iterable[StoredTensor]) -> str:
        """A digest over header, size and a probe from the middle of every tensor: fine-tunes differ in nothing else.

        In a Hugging Face cache it is the name of the blob, which is the Hub's own ETag: so a model that came by
        huggingface_hub and the same model by its id have equal fingerprints.
        """
        path = locate(self.folder, file)
        if path is None:
            raise refuse("bad_model", f"The weights file {file} went away while it was described.")
        if (etag := blob_name(self.folder, file)) is not None:
            return etag
        digest = hashlib.sha256()
        feed(digest, header.raw)
        feed(digest, str(header.file_bytes).encode())
        try:
            with path.open("rb") as stream:
                for tensor in tensors:
                    stream.seek(tensor.offset + max(0, tensor.length - PROBE_BYTES) // 2)
                    feed(digest, stream.read(min(PROBE_BYTES, tensor.length)))
        except OSError as error:
            raise refuse("bad_model", f"The weights file {file} cannot be read: {error}.") from error
        return digest.hexdigest()

    def same_bytes(self, one: Located, other: Located) -> bool:
        """Chunk by chunk: what differs mostly does so in the first, and gigabytes are never held."""
        (file, tensor), (other_file, other_tensor) = one, other
        path, other_path = locate(self.folder, file), locate(self.folder, other_file)
        if path is None or other_path is None:
            raise refuse("bad_model", f"A weights file of {self.folder} went away while it was described.")
        try:
            with path.open("rb") as stream, other_path.open("rb") as other_stream:
                stream.seek(tensor.offset)
                other_stream.seek(other_tensor.offset)
                left = tensor.length
                while left:
                    chunk = stream.read(min(left, COMPARED_BYTES))
                    if not chunk or chunk != other_stream.read(len(chunk)):
                        return False
                    left -= len(chunk)
        except OSError as error:
            raise refuse("bad_model", f"{file} or {other_file} cannot be read: {error}.") from error
        return True

    def names(self) -> Iterable[str]:
        try:
            return sorted(path.name for path in self.folder.iterdir())
        except OSError as error:
            raise refuse("bad_model", f"{self.folder} cannot be listed: {error}.") from error


def feed(digest: "hashlib._Hash", part: bytes) -> None:
    """Length first, so that no two sequences of parts read the same."""
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)
