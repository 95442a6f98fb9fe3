"""A model directory, described: the spec and the place of every tensor, from headers alone.

Promises: a described model is complete (every tensor a Llama of this config has, in the shape it must have) and all of
it lies within the directory. Refuses to know how weights are read, sent or computed with.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import attrs

from hydra.protocol.model_spec import Described, Dtype, ModelSpec, TensorRange
from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.config import ARCHITECTURE, LlamaConfig, read_config
from hydra.store.directory import is_plain_name, locate, open_directory, read_json_file, shown
from hydra.store.ranges import EMBEDDING, HEAD, LAYER_PREFIX, NORM, layer_of
from hydra.store.safetensors_header import WEIGHT_DTYPES, Header, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PROBE_BYTES = 4096

Shape = tuple[int, ...]


@attrs.frozen(kw_only=True)
class _Shard:
    path: Path
    header: Header


def describe(model_path: str) -> Described:
    """Reads config and headers. Raises RefusalError: model_not_found, bad_model, unsupported."""
    directory = open_directory(model_path)
    config = read_config(directory)
    expected = dict(expected_tensors(config))
    shards, placed = _open_shards(directory, set(expected))
    _check_nothing_unaccounted(config, set(expected), set(placed))
    tensors = tuple(_tensor(name, shape, placed, shards) for name, shape in expected.items())
    return Described(
        model_path=str(directory),
        default_id=directory.name,
        spec=_spec(config, tensors, _fingerprint(config.raw, shards, tensors)),
        tensors=tensors,
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


def _open_shards(directory: Path, wanted: set[str]) -> tuple[dict[str, _Shard], dict[str, str]]:
    """The files that hold wanted tensors, by name, and for each tensor stored anywhere the file it is in."""
    if (path := locate(directory, SINGLE)) is not None:
        header = read_header(path, SINGLE)
        return {SINGLE: _Shard(path=path, header=header)}, dict.fromkeys(header.tensors, SINGLE)
    index = read_json_file(directory, INDEX)
    if index is None:
        raise _no_weights(directory)
    placed = index[0].get("weight_map")
    if not isinstance(placed, dict):
        raise refuse("bad_model", f"{INDEX} has no weight_map.")
    shards: dict[str, _Shard] = {}
    for name, file in placed.items():
        if not isinstance(file, str) or not is_plain_name(file):
            raise refuse("bad_model", f"{INDEX} puts {shown(name)} into {shown(file)}, which is not a plain file name.")
        if name not in wanted or file in shards:
            continue
        path = locate(directory, file)
        if path is None:
            raise refuse("bad_model", f"{INDEX} puts {name!r} into {file}, which is missing. Complete the download.")
        shards[file] = _Shard(path=path, header=read_header(path, file))
    return shards, placed


def _no_weights(directory: Path) -> RefusalError:
    try:
        pickled = sorted(path.name for path in directory.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
    except OSError as error:
        return refuse("bad_model", f"{directory} cannot be listed: {error}.")
    if not pickled:
        return refuse("bad_model", f"{directory} has neither {SINGLE} nor {INDEX}.")
    return refuse(
        "unsupported",
        f"{directory} holds pickled weights ({shown(pickled[0])}), which can run code when read. "
        "Convert them to safetensors: load the model with transformers where you trust it, then save_pretrained().",
    )


def _check_nothing_unaccounted(config: LlamaConfig, expected: set[str], stored: set[str]) -> None:
    """A weight inside a layer that the config does not ask for means that the config is not this model's."""
    for name in sorted(stored - expected):
        layer = layer_of(name)
        if layer is not None and layer < config.n_layers and not name.endswith(".rotary_emb.inv_freq"):
            raise refuse("bad_model", f"The weights hold {shown(name)}, which config.json does not account for.")


def _tensor(name: str, shape: Shape, placed: dict[str, str], shards: dict[str, _Shard]) -> TensorRange:
    if name not in placed:
        raise refuse("bad_model", f"The weights lack {name!r}, which config.json asks for.")
    file = placed[name]
    stored = shards[file].header.tensors.get(name)
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


def _fingerprint(config_raw: bytes, shards: dict[str, _Shard], tensors: tuple[TensorRange, ...]) -> str:
    """Config, headers, sizes, and a probe from the middle of every tensor: two fine-tunes differ in nothing else."""
    digest = hashlib.sha256()
    _feed(digest, config_raw)
    for file, shard in sorted(shards.items()):
        _feed(digest, file.encode())
        _feed(digest, shard.header.raw)
        _feed(digest, str(shard.header.file_bytes).encode())
        try:
            with shard.path.open("rb") as stream:
                for tensor in (tensor for tensor in tensors if tensor.file == file):
                    stream.seek(tensor.offset + max(0, tensor.length - PROBE_BYTES) // 2)
                    _feed(digest, stream.read(min(PROBE_BYTES, tensor.length)))
        except OSError as error:
            raise refuse("bad_model", f"The weights file {file} cannot be read: {error}.") from error
    return digest.hexdigest()


def _feed(digest: "hashlib._Hash", part: bytes) -> None:
    """Length first, so that no two sequences of parts read the same."""
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)


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
