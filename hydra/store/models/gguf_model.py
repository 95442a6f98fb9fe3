"""A model in one GGUF file, or in several that are its parts, described: the spec and the place of every tensor.

Promises: as for a model directory, everything is complete and lies within its own files; what the converter of
llama.cpp changed is said of each tensor (`Place.converted`), so that a reader undoes it. The small files that a
directory would have are made from the metadata, in the cache. Refuses to know where the files lie.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import attrs

from hydra.protocol.model.encoding import PlainEncoding
from hydra.protocol.model.model_name import gguf_stem
from hydra.protocol.model.model_spec import Described, StoredFile, TensorRange
from hydra.protocol.model.source import Directory
from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.files.directory import locate, shown
from hydra.store.files.file_identity import FileIdentity
from hydra.store.formats.safetensors_header import Header, StoredTensor
from hydra.store.gguf.ggml_types import GGML_TYPES
from hydra.store.gguf.gguf_config import architecture_of
from hydra.store.gguf.gguf_content import GgufContent, first_part, gguf_parts, is_gguf
from hydra.store.gguf.gguf_folder import FORMAT, model_folder
from hydra.store.gguf.gguf_header import GgufHeader, read_gguf_header
from hydra.store.gguf.gguf_names import EMBEDDING, HEAD, LAYERS, NORM, GgufNames, names_of
from hydra.store.gguf.gguf_rope import ROPE_TENSORS
from hydra.store.models.config import ModelConfig, read_config
from hydra.store.models.model_dir import describe, log, spec_of
from hydra.store.models.names import Expected, Names, Slot, expected_tensors
from hydra.store.models.weight_files import LocalFiles, feed

_TYPES = {kind.name: kind for kind in GGML_TYPES.values()}


class GgufFiles(Protocol):
    """The files of one place, on this disk or only at the Hub."""

    def header(self, file: str) -> GgufHeader | None:
        """None when there is no such file. Raises RefusalError: bad_model, unsupported."""

    def tag(self, file: str, header: Header, tensors: Iterable[StoredTensor]) -> str:
        """What StoredFile.tag promises."""

    def read(self, file: str, offset: int, length: int) -> bytes:
        """A few bytes. Raises RefusalError."""

    def identity(self, file: str) -> str:
        """What StoredFile.identity promises; empty where there is no such file on a disk."""


@attrs.frozen
class LocalGguf:
    """Of a directory of this machine."""

    folder: Path

    def header(self, file: str) -> GgufHeader | None:
        path = locate(self.folder, file)
        return None if path is None else read_gguf_header(path, file)

    def tag(self, file: str, header: Header, tensors: Iterable[StoredTensor]) -> str:
        return LocalFiles(self.folder).tag(file, header, tensors)

    def identity(self, file: str) -> str:
        try:
            path = locate(self.folder, file)
            return "" if path is None else FileIdentity.of(path.stat()).name
        except OSError:
            return ""  # whoever reads it says why it cannot be

    def read(self, file: str, offset: int, length: int) -> bytes:
        path = locate(self.folder, file)
        try:
            with (self.folder / file if path is None else path).open("rb") as stream:
                stream.seek(offset)
                return stream.read(length)
        except OSError as error:
            raise refuse("bad_model", f"The GGUF file {file} cannot be read: {error}.") from error


def describe_path(model_path: str, cache_dir: Path, *, tied: bool | None = None) -> Described:
    """A directory or a GGUF file of this machine, as `model_dir.describe` does it; of a GGUF file the small files are
    made below `cache_dir`. Raises RefusalError: model_not_found, bad_model, unsupported.
    """
    place = gguf_place(model_path)
    if place is None:
        return describe(model_path, tied=tied)
    folder, file = place
    files = LocalGguf(folder)
    described = describe_gguf(files, file, str(folder / file), gguf_stem(file), cache_dir)
    return attrs.evolve(described, sources=(Directory(str(folder)),))


def gguf_place(model_path: str) -> tuple[Path, str] | None:
    """(directory, name) of the first GGUF file of the model at this path; None for a path that is no file's."""
    try:
        path = Path(os.path.abspath(Path(model_path).expanduser()))  # noqa: PTH100 - resolve() would follow links
        if not is_gguf(path.name) or not path.is_file():
            return None
    except (OSError, ValueError, RuntimeError):  # no permission, a NUL in the path, ~somebody unknown
        return None
    try:
        locate(path.parent, path.name)
    except RefusalError:  # a link out of its directory: the file is where it leads to
        real = path.resolve()
        path = real if is_gguf(real.name) else path
    return path.parent, first_part(path.name)


def gguf_fingerprint(folder: Path, file: str) -> str:
    """Of the model in these files, from headers and probes alone."""
    files = LocalGguf(folder)
    content = open_content(files, file)
    return _fingerprint(content, _stored_files(files, content, {}))


def open_content(files: GgufFiles, file: str) -> GgufContent:
    """`file` is the first part, or all. Raises RefusalError: bad_model, unsupported."""
    headers: dict[str, GgufHeader] = {}
    for part in gguf_parts(file):
        header = files.header(part)
        if header is None:
            raise refuse("bad_model", f"The GGUF model {file} lacks its part {part}. Complete the download.")
        headers[part] = header
    return GgufContent.of(headers, files.read)


def describe_gguf(files: GgufFiles, file: str, model_path: str, default_id: str, cache_dir: Path) -> Described:
    """Where to read the weights is then for the caller to say. Raises RefusalError: bad_model, unsupported."""
    identities = {part: files.identity(part) for part in gguf_parts(file)}  # before anything is read
    content = open_content(files, file)
    architecture = architecture_of(content.metadata)
    names = names_of(architecture, content.tensors.keys())
    folder = model_folder(content, cache_dir)
    config = _config(folder, file)
    expected = tuple(expected_tensors(config.shape, _as_names(names)))
    _check_nothing_unaccounted(content, {_stored_name(tensor.name)[0] for tensor in expected})
    tensors = tuple(_range(content, names, tensor) for tensor in expected)
    stored = _stored_files(files, content, identities)
    return Described(
        model_path=model_path,
        default_id=default_id,
        spec=spec_of(config, tensors, _fingerprint(content, stored)),
        tensors=tensors,
        files=stored,
        folder=str(folder),
    )


def _config(folder: Path, file: str) -> ModelConfig:
    try:
        return read_config(folder)
    except RefusalError as error:
        refusal = error.refusal
        raise refuse(refusal.code, f"The GGUF file {file}, read as a config: {refusal.message}") from error


def _as_names(names: GgufNames) -> Names:
    layer = {name: Slot(*goal) for name, goal in names.layer.items()}
    return Names(layer=layer, layers=LAYERS, norm=NORM, embedding=EMBEDDING, head=HEAD)


def _stored_name(name: str) -> tuple[str, int | None]:
    """(the tensor that holds it, which of the experts in there): "blk.0.ffn_up_exps.3.weight" is in
    "blk.0.ffn_up_exps.weight"."""
    stem, _, suffix = name.rpartition(".")
    whole, _, number = stem.rpartition(".")
    if whole.endswith("_exps") and number.isdecimal():
        return f"{whole}.{suffix}", int(number)
    return name, None


def _range(content: GgufContent, names: GgufNames, expected: Expected) -> TensorRange:
    """The bytes of one tensor, or of one expert's share of it."""
    name, expert = _stored_name(expected.name)
    stored = content.tensors.get(name)
    if stored is None:
        raise refuse(
            "bad_model", f"The GGUF file {content.file} lacks the tensor {name!r}, which its metadata asks for."
        )
    tensor, shape = stored.tensor, expected.shape
    encoding = _TYPES[tensor.file_dtype].encoding
    if encoding is None or (len(shape) == 1 and not isinstance(encoding, PlainEncoding)):
        known = ", ".join(kind.name for kind in _TYPES.values() if kind.encoding is not None)
        what = "only F32, F16 and BF16 are, for a vector" if encoding is not None else f"supported are {known}"
        raise refuse("unsupported", f"{name!r} in {stored.file} is stored as {tensor.file_dtype}; {what}.")
    n_experts = 1 if expert is None else tensor.shape[0]
    if tensor.shape != (shape if expert is None else (n_experts, *shape)):
        what = f"{name!r} in {stored.file} has shape {tensor.shape}; its metadata asks for {shape}"
        raise refuse("bad_model", f"{what}{'' if expert is None else ' for each expert'}.")
    if (expert or 0) >= n_experts:
        raise refuse("bad_model", f"{name!r} in {stored.file} holds {n_experts} experts; its metadata asks for more.")
    length = encoding.n_bytes(shape)
    return TensorRange(
        name=name if expert is None else f"{name}[{expert}]",
        file=stored.file,
        offset=tensor.offset + (expert or 0) * length,
        length=length,
        encoding=encoding,
        shape=shape,
        place=attrs.evolve(expected.place, converted=names.converted.get(_module(name), "")),
    )


def _module(name: str) -> str:
    """A tensor's name without its layer and its ending."""
    stem = name.rpartition(".")[0]
    return stem.split(".", 2)[2] if stem.startswith(LAYERS) and stem.count(".") >= 2 else stem


def _check_nothing_unaccounted(content: GgufContent, expected: set[str]) -> None:
    """A tensor of a layer, or of an end, that the metadata does not ask for: the model is another than it says."""
    ends = tuple(f"{name}." for name in (EMBEDDING, NORM, HEAD))
    others = sorted(content.tensors.keys() - expected - ROPE_TENSORS)
    for name in others:
        if name.startswith((LAYERS, *ends)):
            file = content.tensors[name].file
            raise refuse("bad_model", f"{file} holds {shown(name)}, which its metadata does not account for.")
    if others:
        log.warning("weights that the architecture does not have are passed over", n=len(others), first=others[0][:120])


def _stored_files(files: GgufFiles, content: GgufContent, identities: Mapping[str, str]) -> tuple[StoredFile, ...]:
    return tuple(
        StoredFile(
            file=file,
            size_bytes=header.file_bytes,
            tag=files.tag(file, header.as_weights, header.tensors.values()),
            identity=identities.get(file, ""),
        )
        for file, header in content.headers.items()
    )


def _fingerprint(content: GgufContent, stored: Sequence[StoredFile]) -> str:
    """Headers, sizes and tags of the files, and by which rules they were read."""
    digest = hashlib.sha256()
    feed(digest, f"gguf {FORMAT}".encode())
    for item in stored:
        feed(digest, item.file.encode())
        feed(digest, content.headers[item.file].raw)
        feed(digest, str(item.size_bytes).encode())
        feed(digest, item.tag.encode())
    return digest.hexdigest()
