"""A model, described: the spec and the place of every tensor, from config and headers alone.

Promises: a described model is complete (every tensor its config asks for, in the shape it must have) and all of
it lies within its own files. Refuses to know how weights are read, sent or computed with, and where the files lie.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import attrs

from hydra.protocol.layout import Part, part_of
from hydra.protocol.model_spec import Described, Dtype, ModelSpec, StoredFile, TensorRange
from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.config import ModelConfig, read_config
from hydra.store.directory import is_plain_name, open_directory, read_json_file, shown
from hydra.store.foreign_file import unfinished
from hydra.store.name_prefix import as_stored, why_lacking
from hydra.store.names import ROTARY_CONSTANT, Expected, expected_tensors
from hydra.store.safetensors_header import WEIGHT_DTYPES, Header
from hydra.store.weight_files import LocalFiles, WeightFiles, feed

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def describe(model_path: str) -> Described:
    """Reads config and headers. Raises RefusalError: model_not_found, bad_model, unsupported."""
    directory = open_directory(model_path)
    return describe_files(LocalFiles(directory), str(directory), directory.name)


def describe_files(files: WeightFiles, model_path: str, default_id: str) -> Described:
    """The same for files that may lie elsewhere; where to read the weights is then for the caller to say."""
    config = read_config(files.folder)
    opened, placed = _stored_names(files)
    config = attrs.evolve(config, names=as_stored(config.names, placed))
    expected = tuple(expected_tensors(config.shape, config.names))
    wanted = {tensor.name for tensor in expected}
    shards = opened or _open_shards(files, placed, wanted)
    _check_nothing_unaccounted(config, wanted, placed)
    tensors = tuple(_tensor(tensor, placed, shards) for tensor in expected)
    stored = _stored_files(files, shards, wanted)
    return Described(
        model_path=model_path,
        default_id=default_id,
        spec=_spec(config, tensors, _fingerprint(config.raw, shards, stored)),
        tensors=tensors,
        files=stored,
        folder=str(files.folder),
    )


def _stored_names(files: WeightFiles) -> tuple[dict[str, Header], dict[str, str]]:
    """For each stored tensor the file it is in; and the header of that file where it is the only one."""
    if (header := files.header(SINGLE)) is not None:
        return {SINGLE: header}, dict.fromkeys(header.tensors, SINGLE)
    index = read_json_file(files.folder, INDEX)
    if index is None:
        raise _no_weights(files)
    placed = index[0].get("weight_map")
    if not isinstance(placed, dict):
        raise refuse("bad_model", f"{INDEX} has no weight_map.")
    for name, file in placed.items():
        if not isinstance(file, str) or not is_plain_name(file):
            raise refuse("bad_model", f"{INDEX} puts {shown(name)} into {shown(file)}, which is not a plain file name.")
    return {}, placed


def _open_shards(files: WeightFiles, placed: dict[str, str], wanted: set[str]) -> dict[str, Header]:
    """The headers of the files that hold wanted tensors."""
    shards: dict[str, Header] = {}
    for name, file in placed.items():
        if name not in wanted or file in shards:
            continue
        header = files.header(file)
        if header is None:
            raise refuse("bad_model", f"{INDEX} puts {name!r} into {file}, which is missing. Complete the download.")
        shards[file] = header
    return shards


def _stored_files(files: WeightFiles, shards: dict[str, Header], expected: set[str]) -> tuple[StoredFile, ...]:
    return tuple(
        StoredFile(
            file=file,
            size_bytes=header.file_bytes,
            tag=files.tag(file, header, [tensor for name, tensor in header.tensors.items() if name in expected]),
        )
        for file, header in sorted(shards.items())
    )


def _no_weights(files: WeightFiles) -> RefusalError:
    names = list(files.names())
    if (refusal := unfinished(files.folder, names)) is not None:
        return refusal
    pickled = [name for name in names if Path(name).suffix in (".bin", ".pt", ".pth")]
    if not pickled:
        return refuse("bad_model", f"{files.folder} has neither {SINGLE} nor {INDEX}.")
    return refuse(
        "unsupported",
        f"{files.folder} holds pickled weights ({shown(pickled[0])}), which can run code when read. "
        "Convert them to safetensors: load the model with transformers where you trust it, then save_pretrained().",
    )


def _check_nothing_unaccounted(config: ModelConfig, expected: set[str], stored: Iterable[str]) -> None:
    """A weight inside a layer (or an end) that the config does not ask for: the config is not this model's."""
    ends = tuple(f"{module}." for module in config.names.ends())
    tied_head = f"{config.names.head}.weight" if config.shape.tied else None
    for name in sorted(set(stored) - expected):
        layer = config.names.layer_of(name)
        within = name.startswith(ends) if layer is None else layer < config.shape.n_layers
        if within and name != tied_head and not name.endswith(f".{ROTARY_CONSTANT}"):
            raise refuse("bad_model", f"The weights hold {shown(name)}, which config.json does not account for.")


def _tensor(expected: Expected, placed: dict[str, str], shards: dict[str, Header]) -> TensorRange:
    name, shape = expected.name, expected.shape
    if name not in placed:
        raise why_lacking(name, expected.place.role == "head", placed)
    file = placed[name]
    stored = shards[file].tensors.get(name)
    if stored is None:
        raise refuse("bad_model", f"{INDEX} puts {name!r} into {file}, which does not hold it.")
    if stored.shape != shape:
        raise refuse("bad_model", f"{name!r} in {file} has shape {stored.shape}; config.json asks for {shape}.")
    if stored.dtype not in WEIGHT_DTYPES:
        known = ", ".join(WEIGHT_DTYPES)
        raise refuse("unsupported", f"{name!r} in {file} is stored as {stored.dtype}; supported are {known}.")
    return TensorRange(
        name=name,
        file=file,
        offset=stored.offset,
        length=stored.length,
        dtype=WEIGHT_DTYPES[stored.dtype],
        shape=stored.shape,
        place=expected.place,
    )


def _fingerprint(config_raw: bytes, shards: dict[str, Header], stored: tuple[StoredFile, ...]) -> str:
    """Config, headers, sizes and tags of the files. Where they came from does not enter."""
    digest = hashlib.sha256()
    feed(digest, config_raw)
    for item in stored:
        feed(digest, item.file.encode())
        feed(digest, shards[item.file].raw)
        feed(digest, str(item.size_bytes).encode())
        feed(digest, item.tag.encode())
    return digest.hexdigest()


def _spec(config: ModelConfig, tensors: tuple[TensorRange, ...], fingerprint: str) -> ModelSpec:
    per_part: Counter[Part] = Counter()
    per_dtype: Counter[Dtype] = Counter()
    for tensor in tensors:
        params = math.prod(tensor.shape)
        per_dtype[tensor.dtype] += params
        per_part[part_of(tensor)] += params
    return ModelSpec(
        **attrs.asdict(config.shape, recurse=False),
        fingerprint=fingerprint,
        stored_dtype=per_dtype.most_common(1)[0][0],
        layer_params=tuple(per_part[layer] for layer in range(config.shape.n_layers)),
        embedding_params=per_part["embedding"],
        head_params=per_part["head"],
        norm_params=per_part["norm"],
        bos_id=config.speech.bos_id,
        eos_ids=config.speech.eos_ids,
        default_sampling=config.speech.default_sampling,
    )
