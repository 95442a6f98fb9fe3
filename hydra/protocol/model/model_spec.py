"""What a model is, in numbers: everything the planner and the kernels must agree on, and nothing else.

The coordinator reads a spec once from a model directory's config and safetensors headers; it travels to the workers
inside LoadSlice. This file knows no file format and no tensor. Bytes are those of memory where a dtype is asked for,
else those of files.
"""

from typing import Literal

import attrs

from hydra.protocol.model.cache_spec import CacheSize, cache_size
from hydra.protocol.model.decoder_spec import DecoderSpec
from hydra.protocol.model.dtype import Dtype
from hydra.protocol.model.encoding import Encoding
from hydra.protocol.model.part_size import PartSize, total_size
from hydra.protocol.model.source import Directory, HubCommit, Source, hub_commit_of
from hydra.protocol.sampling import DefaultSampling

WeightRole = Literal[
    "attention_norm",
    "attention_norm_bias",
    "qkv",
    "qkv_bias",
    "query_norm",
    "query_norm_bias",
    "key_norm",
    "key_norm_bias",
    "out",
    "out_bias",
    "after_attention_norm",
    "after_attention_norm_bias",
    "mlp_norm",
    "mlp_norm_bias",
    "gate_up",
    "gate_up_bias",
    "down",
    "down_bias",
    "sinks",
    "router",
    "router_bias",
    "expert_gate_up",
    "expert_gate_up_bias",
    "expert_down",
    "expert_down_bias",
    "after_mlp_norm",
    "after_mlp_norm_bias",
    "embedding",
    "final_norm",
    "final_norm_bias",
    "head",
    "head_bias",
]

Quantize = Literal["none", "int8", "int4"]
"""What a model of full precision is made into while it is loaded."""


@attrs.frozen(kw_only=True)
class ModelShape:
    """A decoder-only transformer as its config describes it: widths, counts and arithmetic."""

    architecture: str  # as in config.json, e.g. "LlamaForCausalLM"
    hidden: int
    vocab: int
    max_positions: int  # of the longest sequence that it can do, the scaling of its ropes counted
    tied: bool
    decoder: DecoderSpec

    @property
    def n_layers(self) -> int:
        return self.decoder.n_layers

    @property
    def layer_width(self) -> int:
        """Numbers that one token's intermediates take in the widest layer: a few of its hidden states, and those of its
        feed-forward.
        """
        return 6 * self.hidden + max(kind.feed_forward.width(self.hidden) for kind in self.decoder.kinds)

    def cache_size(self, first_layer: int, end_layer: int, dtype: Dtype) -> CacheSize:
        """What layers [first_layer, end_layer) keep of the rows they have seen."""
        return cache_size((layer.cache for layer in self.decoder.layers[first_layer:end_layer]), dtype)


@attrs.frozen(kw_only=True)
class ModelSpec(ModelShape):
    """The shape, and what the files hold: the size of each part.

    With `tied` the head reuses the embedding matrix and `head_size` counts at most a bias, yet a worker that holds only
    the head still needs memory for the embedding.
    """

    fingerprint: str  # hex; equal fingerprints mean equal weights and config
    stored_dtype: Dtype  # of most of its numbers: what a route computes in unless told otherwise
    layer_sizes: tuple[PartSize, ...]
    embedding_size: PartSize
    head_size: PartSize
    norm_size: PartSize
    bos_id: int | None
    eos_ids: tuple[int, ...]
    default_sampling: DefaultSampling = DefaultSampling()
    quantize: Quantize = "none"  # while it is loaded

    def slice_size(self, first_layer: int, end_layer: int) -> PartSize:
        """Of layers [first_layer, end_layer) with the embedding and the head where they belong."""
        sizes = list(self.layer_sizes[first_layer:end_layer])
        if first_layer == 0:
            sizes.append(self.embedding_size)
        if end_layer == self.n_layers:
            sizes += (self.norm_size, self.head_size)
            if self.tied and first_layer != 0:
                sizes.append(self.embedding_size)
        return total_size(sizes)

    def slice_bytes(self, first_layer: int, end_layer: int, dtype: Dtype) -> int:
        """Memory of that slice's weights in a route of this dtype."""
        return self.slice_size(first_layer, end_layer).memory_bytes(dtype)


WeightSide = Literal[
    "values", "scale", "zero", "order", "second_scale", "second_offset", "table", "second_table", "shape"
]
"""What of a matrix a tensor holds: its values, or what they are decoded with. `order` is the group of each column,
`second_offset` bitsandbytes' JSON with the offset in it, `shape` the rows and columns that the file says it has."""
Converted = Literal["", "interleaved", "plus_one", "transposed"]
"""What a converter changed and a reader undoes: the rows of each head in pairs for a rope that turns neighbours, 1
added to a norm, or columns in by rows out, one column after the other."""


@attrs.frozen(kw_only=True)
class Place:
    """Where a published tensor belongs in the canonical matrices (see `layout`).

    From row `first_row` on, of the matrix `role` in layer `layer` (None: at the ends), there of expert `expert`
    (None: the matrix has none, or the tensor holds all of them). A matrix that lies in several tensors has one range of
    `values` and one for each other side, all with the same place but for `side`.
    """

    role: WeightRole
    layer: int | None = None
    first_row: int = 0
    expert: int | None = None
    side: WeightSide = "values"
    converted: Converted = ""


@attrs.frozen(kw_only=True)
class TensorRange:
    """One tensor's bytes in a described model: where they lie, what they must turn out to be, and where they go.

    The shape of values is that of the matrix, rows out by columns in, however its encoding packs them; that of any
    other side is as it is stored.
    """

    name: str  # as published; only for people
    file: str  # relative to the model directory, one path component
    offset: int  # of the first byte, from the start of the file
    length: int  # bytes
    encoding: Encoding
    shape: tuple[int, ...]
    place: Place | None = None  # None: bytes that go into no matrix of a model


@attrs.frozen(kw_only=True)
class StoredFile:
    """One weights file of a described model, wherever it lies."""

    file: str  # relative to the model directory, one path component
    size_bytes: int
    tag: str  # another whenever the bytes differ: the Hub's ETag, or a digest over header and probes
    identity: str = ""  # of a file that was described on a disk: which one, in which state; whoever sees it so has it


@attrs.frozen(kw_only=True)
class Described:
    """A model as the coordinator sees it: read from headers, nothing loaded.

    `sources` are where a worker may read the tensors, best first, as in LoadSlice; `folder` is where config, tokenizer
    and chat template lie on the coordinator's machine. Left empty, both are `model_path`.
    """

    model_path: str  # an absolute directory or GGUF file, or org/name@commit[:FILE.gguf]
    default_id: str
    spec: ModelSpec
    tensors: tuple[TensorRange, ...]  # of the whole model
    files: tuple[StoredFile, ...] = ()  # all weights files
    sources: tuple[Source, ...] = attrs.field(
        default=attrs.Factory(lambda self: (Directory(self.model_path),), takes_self=True)
    )
    folder: str = attrs.field(default=attrs.Factory(lambda self: self.model_path, takes_self=True))

    @property
    def hub_commit(self) -> HubCommit | None:
        """What it is at the Hub; None for a model of a directory."""
        return hub_commit_of(self.sources)


@attrs.frozen(kw_only=True)
class ModelCard:
    """What a frontend must know of a loaded model to speak for it; `folder` holds its tokenizer and chat template."""

    model_id: str
    model_path: str
    architecture: str
    state: Literal["loading", "ready", "degraded", "failed"]
    created_s: int  # seconds since 1970, for the OpenAI model object
    max_model_len: int
    vocab: int
    eos_ids: tuple[int, ...]
    dtype: Dtype
    total_layers: int
    quantize: Quantize = "none"
    default_sampling: DefaultSampling = DefaultSampling()
    folder: str = attrs.field(default=attrs.Factory(lambda self: self.model_path, takes_self=True))
    hub_commit: HubCommit | None = None  # where it is at the Hub; None for a model of a directory
    load: str = ""  # the job that loaded it: a later one may have found other files in the same folder
