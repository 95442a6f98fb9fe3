"""A model, described: the spec and the place of every tensor, from config and headers alone.

Promises: a described model is complete (every tensor its config asks for, in the shape it must have) and all of
it lies within its own files. Refuses to know how weights are read, sent or computed with, and where the files lie.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Container, Iterable
from pathlib import Path

import attrs
import structlog

from hydra.protocol.model.dtype import Dtype
from hydra.protocol.model.encoding import PlainEncoding
from hydra.protocol.model.layout import place_of
from hydra.protocol.model.model_name import hub_name
from hydra.protocol.model.model_spec import Described, ModelSpec, StoredFile, TensorRange
from hydra.protocol.model.part_size import total_size
from hydra.protocol.model.part_sizes import part_sizes
from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.files.directory import is_plain_name, locate, open_directory, read_json_file, shown
from hydra.store.files.foreign_file import unfinished
from hydra.store.formats.safetensors_header import Header
from hydra.store.gguf.gguf_content import is_gguf
from hydra.store.models.config import CONFIG_FILE, ModelConfig, read_config
from hydra.store.models.matrix_ranges import OF_ACTIVATIONS, QUANTISED_MARKS, VALUES, MatrixRanges, with_plain_names
from hydra.store.models.name_prefix import as_stored
from hydra.store.models.names import ROTARY_CONSTANT, expected_tensors
from hydra.store.models.stored_tensors import StoredTensors
from hydra.store.models.tied_head import own_head
from hydra.store.models.unserved_parts import sorted_out
from hydra.store.models.weight_files import LocalFiles, WeightFiles, feed

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
INDEX_MAX_BYTES = 16 << 20  # quantised mixtures of experts have four tensors for each matrix, and about 10 MB
LISTED = 40  # GGUF files that a refusal names
_NOT_SAID_HOW = (
    ": the model is quantised, and quantization_config, which says how, is missing. Take it from quantize_config.json "
    "or quant_config.json, where the model has one, and add its quant_method"
)

log = structlog.get_logger()


def describe(model_path: str, *, tied: bool | None = None) -> Described:
    """Reads config and headers, and a head that is stored beside a tied embedding, unless it is known whether the two
    are `tied`. Raises RefusalError: model_not_found, bad_model, unsupported.
    """
    directory = open_directory(model_path)
    return describe_files(LocalFiles(directory), str(directory), directory.name, tied=tied)


def describe_files(files: WeightFiles, model_path: str, default_id: str, *, tied: bool | None = None) -> Described:
    """The same for files that may lie elsewhere; where to read the weights is then for the caller to say."""
    _refuse_gguf_alone(files, model_path)
    config = read_config(files.folder)
    opened, placed = _stored_names(files)
    config = attrs.evolve(config, names=as_stored(config.names, with_plain_names(placed)))
    shards = opened or _open_shards(files, placed, _wanted(config, placed))
    config, placed, untied = _untied(files, config, placed, shards, tied=tied)
    stored = StoredTensors(placed=placed, shards=shards, index=INDEX)
    expected = tuple(expected_tensors(config.shape, config.names))
    if config.quantisation is None:  # then nothing else is needed to say what is wrong with the names
        _check_names(config, {tensor.name for tensor in expected}, stored)
    matrices = MatrixRanges(names=config.names, quantisation=config.quantisation, stored=stored)
    tensors = matrices.of(expected)
    used = {tensor.name for tensor in tensors}
    if config.quantisation is not None:
        _check_names(config, used | matrices.ignored, stored)
    shards = {file: shards[file] for file in sorted({tensor.file for tensor in tensors})}
    stored_files = _stored_files(files, shards, used)
    return Described(
        model_path=model_path,
        default_id=default_id,
        spec=spec_of(config, tensors, _fingerprint(config.raw, shards, stored_files, untied=untied)),
        tensors=tensors,
        files=stored_files,
        folder=str(files.folder),
    )


def _wanted(config: ModelConfig, placed: Container[str]) -> Callable[[str], bool]:
    """Whether a tensor is needed to describe the model: of a quantised one all in its layers and ends may be."""
    if config.quantisation is not None:
        within = (config.names.layers, *(f"{module}." for module in config.names.ends()))
        return lambda name: name.startswith(within)
    return {*(tensor.name for tensor in expected_tensors(config.shape, config.names)), _head(config)}.__contains__


def _head(config: ModelConfig) -> str:
    return f"{config.names.head}.weight"


def _untied(
    files: WeightFiles, config: ModelConfig, placed: dict[str, str], shards: dict[str, Header], *, tied: bool | None
) -> tuple[ModelConfig, dict[str, str], bool]:
    """The same, or where a head is stored that must be used against the config's word, with that head and True."""
    if not config.shape.tied:
        return config, placed, False
    untied = attrs.evolve(config, shape=attrs.evolve(config.shape, tied=False))
    if any(config.names.head + suffix in placed for suffix in VALUES):
        return untied, placed, True  # quantised, and so by itself not the embedding
    file = own_head(files, config.names, shards, tied=tied)
    return (config, placed, False) if file is None else (untied, {**placed, _head(config): file}, True)


def _stored_names(files: WeightFiles) -> tuple[dict[str, Header], dict[str, str]]:
    """For each stored tensor the file it is in; and the header of that file where it is the only one."""
    if (header := files.header(SINGLE)) is not None:
        return {SINGLE: header}, dict.fromkeys(header.tensors, SINGLE)
    index = read_json_file(files.folder, INDEX, INDEX_MAX_BYTES)
    if index is None:
        raise _no_weights(files)
    placed = index[0].get("weight_map")
    if not isinstance(placed, dict):
        raise refuse("bad_model", f"{INDEX} has no weight_map.")
    for name, file in placed.items():
        if not isinstance(file, str) or not is_plain_name(file):
            raise refuse("bad_model", f"{INDEX} puts {shown(name)} into {shown(file)}, which is not a plain file name.")
    return {}, placed


def _open_shards(files: WeightFiles, placed: dict[str, str], is_wanted: Callable[[str], bool]) -> dict[str, Header]:
    """The headers of the files that hold wanted tensors."""
    shards: dict[str, Header] = {}
    for name, file in placed.items():
        if file in shards or not is_wanted(name):
            continue
        header = files.header(file)
        if header is None:
            raise refuse("bad_model", f"{INDEX} puts {name!r} into {file}, which is missing. Complete the download.")
        shards[file] = header
    return shards


def _stored_files(files: WeightFiles, shards: dict[str, Header], used: Container[str]) -> tuple[StoredFile, ...]:
    return tuple(
        StoredFile(
            file=file,
            size_bytes=header.file_bytes,
            tag=files.tag(file, header, [tensor for name, tensor in header.tensors.items() if name in used]),
        )
        for file, header in sorted(shards.items())
    )


def _refuse_gguf_alone(files: WeightFiles, model_path: str) -> None:
    """A place with GGUF files and nothing else: which of them is meant must be said."""
    if locate(files.folder, CONFIG_FILE) is not None:
        return
    named = sorted(name for name in files.names() if is_gguf(name))
    if named:
        one = f"{model_path}{'/' if hub_name(model_path) is None else ':'}{named[0]}"
        what = f"{model_path} holds GGUF files and no {CONFIG_FILE}: {', '.join(named[:LISTED])}"
        raise refuse("bad_model", f"{what}. Name the one that is meant, as in {one}.")


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


def _check_names(config: ModelConfig, known: Container[str], stored: StoredTensors) -> None:
    for file, header in stored.shards.items():
        for name in header.tensors:
            if name in known and stored.placed.get(name, file) != file:
                raise refuse("bad_model", f"{INDEX} puts {name!r} into {stored.placed[name]}, but {file} holds it.")
    _check_nothing_unaccounted(config, known, stored.names())


def _check_nothing_unaccounted(config: ModelConfig, known: Container[str], stored: Iterable[str]) -> None:
    """A weight of a layer (or an end) that the config does not ask for: the config is not this model's.

    What lies outside the decoder is passed over as transformers does, and said aloud.
    """
    within = (config.names.layers, *(f"{module}." for module in config.names.ends()))
    outside: list[str] = []
    for name in sorted(name for name in stored if name not in known):
        if _is_spare(config, name):
            continue
        if name.startswith(within):
            beyond = (config.names.layer_of(name) or 0) >= config.shape.n_layers
            reason = f": it says {config.shape.n_layers} layers" if beyond else ""
            if config.quantisation is None and name.endswith(QUANTISED_MARKS):
                reason = _NOT_SAID_HOW
            raise refuse(
                "bad_model", f"The weights hold {shown(name)}, which config.json does not account for{reason}."
            )
        outside.append(name)
    sorted_names = sorted_out(outside)
    for part, n_tensors in sorted_names.parts.items():
        log.info(f"the model's {part} part is not served: only its text part is", n_tensors=n_tensors)
    if unknown := sorted_names.unknown:
        log.warning(
            "weights that the architecture does not have are passed over", n=len(unknown), first=unknown[0][:120]
        )


def _is_spare(config: ModelConfig, name: str) -> bool:
    """Whether a tensor of a layer or an end may be there although nothing asks for it."""
    if (config.shape.tied and name == _head(config)) or name.endswith(f".{ROTARY_CONSTANT}"):
        return True  # that head was compared
    if config.quantisation is None:
        return False
    return name.rpartition(".")[2] in OF_ACTIVATIONS or (config.quantisation.spare_biases and name.endswith(".bias"))


def _fingerprint(config_raw: bytes, shards: dict[str, Header], stored: tuple[StoredFile, ...], *, untied: bool) -> str:
    """Config, headers, sizes and tags of the files. Where they came from does not enter.

    `untied`: whether a head is used against the config's word. Files with the same tags may differ in that: here they
    could be compared, there they could not.
    """
    digest = hashlib.sha256()
    feed(digest, config_raw)
    if untied:
        feed(digest, b"a head of its own")
    for item in stored:
        feed(digest, item.file.encode())
        feed(digest, shards[item.file].raw)
        feed(digest, str(item.size_bytes).encode())
        feed(digest, item.tag.encode())
    return digest.hexdigest()


def spec_of(config: ModelConfig, tensors: tuple[TensorRange, ...], fingerprint: str) -> ModelSpec:
    """The config's shape with the sizes of its parts, which are those of the tensors."""
    per_dtype: Counter[Dtype] = Counter()
    for tensor in tensors:
        if place_of(tensor).side == "values":
            dtype = tensor.encoding.dtype if isinstance(tensor.encoding, PlainEncoding) else config.dtype
            per_dtype[dtype] += math.prod(tensor.shape)
    sizes = part_sizes(tensors)
    stored = max(per_dtype, key=lambda dtype: per_dtype[dtype], default=config.dtype)
    return ModelSpec(
        **attrs.asdict(config.shape, recurse=False),
        fingerprint=fingerprint,
        stored_dtype=stored if config.quantisation is None else config.dtype,
        layer_sizes=tuple(sizes[layer] for layer in range(config.shape.n_layers)),
        embedding_size=sizes["embedding"],
        head_size=sizes.get("head", total_size(())),
        norm_size=sizes["norm"],
        bos_id=config.speech.bos_id,
        eos_ids=config.speech.eos_ids,
        default_sampling=config.speech.default_sampling,
    )
