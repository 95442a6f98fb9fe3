"""A model, described: the spec and the place of every tensor, from config and headers alone.

Promises: a described model is complete (every tensor a Llama of this config has, in the shape it must have) and all of
it lies within its own files. Refuses to know how weights are read, sent or computed with, and where the files lie.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from hydra.protocol.model_spec import Described, Dtype, ModelSpec, StoredFile, TensorRange
from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.config import ARCHITECTURE, LlamaConfig, read_config
from hydra.store.directory import is_plain_name, open_directory, read_json_file, shown
from hydra.store.ranges import EMBEDDING, HEAD, LAYER_PREFIX, NORM, layer_of
from hydra.store.safetensors_header import WEIGHT_DTYPES, Header
from hydra.store.weight_files import LocalFiles, WeightFiles, feed

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

Shape = tuple[int, ...]


def describe(model_path: str) -> Described:
    """Reads config and headers. Raises RefusalError: model_not_found, bad_model, unsupported."""
    directory = open_directory(model_path)
    return describe_files(LocalFiles(directory), str(directory), directory.name)


def describe_files(files: WeightFiles, model_path: str, default_id: str) -> Described:
    """The same for files that may lie elsewhere; where to read the weights is then for the caller to say."""
    config = read_config(files.folder)
    expected = dict(expected_tensors(config))
    shards, placed = _open_shards(files, set(expected))
    _check_nothing_unaccounted(config, set(expected), set(placed))
    tensors = tuple(_tensor(name, shape, placed, shards) for name, shape in expected.items())
    stored = _stored_files(files, shards, set(expected))
    return Described(
        model_path=model_path,
        default_id=default_id,
        spec=_spec(config, tensors, _fingerprint(config.raw, shards, stored)),
        tensors=tensors,
        files=stored,
        folder=str(files.folder),
    )


def expected_tensors(config: LlamaConfig) -> Iterator[tuple[str, Shape]]:
    """Every tensor of a Llama with this config, by the names transformers gives them, from input to output."""
    hidden, inner = config.hidden, config.intermediate
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    linears = {  # name: (rows, columns, has a bias)
        "self_attn.q_proj": (queries, hidden, config.attention_bias),
        "self_attn.k_proj": (keys, hidden, config.attention_bias),
        "self_attn.v_proj": (keys, hidden, config.attention_bias),
        "self_attn.o_proj": (hidden, queries, config.attention_bias),
        "mlp.gate_proj": (inner, hidden, config.mlp_bias),
        "mlp.up_proj": (inner, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, inner, config.mlp_bias),
    }
    yield EMBEDDING, (config.vocab, hidden)
    for layer in range(config.n_layers):
        prefix = f"{LAYER_PREFIX}{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        for name, (rows, columns, bias) in linears.items():
            yield f"{prefix}{name}.weight", (rows, columns)
            if bias:
                yield f"{prefix}{name}.bias", (rows,)
    yield NORM, (hidden,)
    if not config.tied:
        yield HEAD, (config.vocab, hidden)


def _open_shards(files: WeightFiles, wanted: set[str]) -> tuple[dict[str, Header], dict[str, str]]:
    """The headers of the files that hold wanted tensors, and for each tensor stored anywhere the file it is in."""
    if (header := files.header(SINGLE)) is not None:
        return {SINGLE: header}, dict.fromkeys(header.tensors, SINGLE)
    index = read_json_file(files.folder, INDEX)
    if index is None:
        raise _no_weights(files)
    placed = index[0].get("weight_map")
    if not isinstance(placed, dict):
        raise refuse("bad_model", f"{INDEX} has no weight_map.")
    shards: dict[str, Header] = {}
    for name, file in placed.items():
        if not isinstance(file, str) or not is_plain_name(file):
            raise refuse("bad_model", f"{INDEX} puts {shown(name)} into {shown(file)}, which is not a plain file name.")
        if name not in wanted or file in shards:
            continue
        header = files.header(file)
        if header is None:
            raise refuse("bad_model", f"{INDEX} puts {name!r} into {file}, which is missing. Complete the download.")
        shards[file] = header
    return shards, placed


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
    pickled = [name for name in files.names() if Path(name).suffix in (".bin", ".pt", ".pth")]
    if not pickled:
        return refuse("bad_model", f"{files.folder} has neither {SINGLE} nor {INDEX}.")
    return refuse(
        "unsupported",
        f"{files.folder} holds pickled weights ({shown(pickled[0])}), which can run code when read. "
        "Convert them to safetensors: load the model with transformers where you trust it, then save_pretrained().",
    )


def _check_nothing_unaccounted(config: LlamaConfig, expected: set[str], stored: set[str]) -> None:
    """A weight inside a layer that the config does not ask for means that the config is not this model's."""
    for name in sorted(stored - expected):
        layer = layer_of(name)
        if layer is not None and layer < config.n_layers and not name.endswith(".rotary_emb.inv_freq"):
            raise refuse("bad_model", f"The weights hold {shown(name)}, which config.json does not account for.")


def _tensor(name: str, shape: Shape, placed: dict[str, str], shards: dict[str, Header]) -> TensorRange:
    if name not in placed:
        raise refuse("bad_model", f"The weights lack {name!r}, which config.json asks for.")
    file = placed[name]
    stored = shards[file].tensors.get(name)
    if stored is None:
        raise refuse("bad_model", f"{INDEX} puts {name!r} into {file}, which does not hold it.")
    if stored.shape != shape:
        raise refuse("bad_model", f"{name!r} in {file} has shape {stored.shape}; config.json asks for {shape}.")
    if stored.dtype not in WEIGHT_DTYPES:
        known = ", ".join(WEIGHT_DTYPES)
        raise refuse("unsupported", f"{name!r} in {file} is stored as {stored.dtype}; supported are {known}.")
    dtype = WEIGHT_DTYPES[stored.dtype]
    return TensorRange(
        name=name, file=file, offset=stored.offset, length=stored.length, dtype=dtype, shape=stored.shape
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


def _spec(config: LlamaConfig, tensors: tuple[TensorRange, ...], fingerprint: str) -> ModelSpec:
    params = {tensor.name: math.prod(tensor.shape) for tensor in tensors}
    per_layer = [0] * config.n_layers
    per_dtype: Counter[Dtype] = Counter()
    for tensor in tensors:
        per_dtype[tensor.dtype] += params[tensor.name]
        if (layer := layer_of(tensor.name)) is not None:
            per_layer[layer] += params[tensor.name]
    return ModelSpec(
        architecture=ARCHITECTURE,
        fingerprint=fingerprint,
        n_layers=config.n_layers,
        hidden=config.hidden,
        intermediate=config.intermediate,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        vocab=config.vocab,
        max_positions=config.max_positions,
        norm_eps=config.norm_eps,
        rope_theta=config.rope_theta,
        tied=config.tied,
        attention_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
        stored_dtype=per_dtype.most_common(1)[0][0],
        layer_params=tuple(per_layer),
        embedding_params=params[EMBEDDING],
        head_params=params.get(HEAD, 0),
        norm_params=params[NORM],
        bos_id=config.bos_id,
        eos_ids=config.eos_ids,
        default_sampling=config.default_sampling,
    )
