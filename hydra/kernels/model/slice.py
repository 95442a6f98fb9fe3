"""One worker's share of a model, ready to run: some layers, with the embedding or the norm and head at the ends.

`forward` takes a step through it and only enqueues on the slice's device. Holds references to parts that other slices
may share; knows nothing of reading, freeing or waiting.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs
import numpy as np
import torch
from torch import Tensor

from hydra.kernels.attention.kv_pool import KvPool
from hydra.kernels.attention.paged_attention import StepPlan, View, attends_to_all, plan_step
from hydra.kernels.devices import runs_triton
from hydra.kernels.model.decode_step import DecodeColumns, DecodeInputs, decode_columns, is_decode, on_device
from hydra.kernels.model.decoder import Block, make_block
from hydra.kernels.model.layer_context import LayerContext
from hydra.kernels.model.norms import Norm, make_norm
from hydra.kernels.model.rotary import Rotary, RotaryTable, lengths, make_rotary
from hydra.kernels.model.softmax_attention import attention_view
from hydra.kernels.sampling.sampler import Pick, SampledTensors, sample
from hydra.kernels.tensors import to_device
from hydra.kernels.weights.embedding import Embedding, make_embedding
from hydra.kernels.weights.encoded.encoded_linear import EncodedLinear
from hydra.kernels.weights.linear import Linear, PlainLinear
from hydra.kernels.weights.part_weights import PartWeights
from hydra.protocol.batch import Batch, OpenRow
from hydra.protocol.model.cache_spec import CacheSpec
from hydra.protocol.model.layout import Part
from hydra.protocol.model.model_spec import ModelSpec


@attrs.frozen(eq=False)
class Head:
    """The end of the last slice: norm, product, and the bend of the logits where there is one."""

    norm: Norm
    linear: Linear  # hidden to vocab
    softcap: float | None

    def __call__(self, x: Tensor) -> Tensor:
        """[n, hidden] to logits [n, vocab] in float32."""
        return self.bend(self.linear(self.norm(x)).to(torch.float32))

    def bend(self, logits: Tensor) -> Tensor:
        """May overwrite its argument."""
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)


@attrs.frozen(eq=False, kw_only=True)
class Slice:
    """Exactly the first slice has an embedding it reads tokens with, exactly the last a head.

    `views` and `rotaries` are what its layers need between them, each once; a block knows its own by index.
    """

    spec: ModelSpec
    dtype: torch.dtype
    device: torch.device
    blocks: tuple[Block, ...]
    caches: tuple[CacheSpec, ...]  # one per block
    views: tuple[View, ...]
    rotaries: tuple[Rotary, ...]
    embedding: Embedding | None
    embedding_scale: Tensor | None  # None: 1
    head: Head | None
    paged: bool  # in a step of one token per row, attention is one call per layer
    steady: bool  # and all such steps of as many rows are the same to the device: no expert is chosen on the host

    @property
    def is_first(self) -> bool:
        return self.embedding is not None

    @property
    def is_last(self) -> bool:
        return self.head is not None

    def pool(self, n_blocks: int, block_size: int) -> KvPool:
        """A pool that fits this slice's layers."""
        return KvPool(self.caches, n_blocks, block_size, self.dtype, self.device)


def build_slice(
    spec: ModelSpec,
    first_layer: int,
    end_layer: int,
    parts: Mapping[Part, PartWeights],
    dtype: torch.dtype,
    device: torch.device,
) -> Slice:
    """A slice over parts already in memory; a part that is missing or of the wrong kind is our own mistake."""

    decoder, layers = spec.decoder, spec.decoder.layers[first_layer:end_layer]
    views = tuple(dict.fromkeys(attention_view(layer.attention) for layer in layers))
    ropes = tuple(dict.fromkeys(layer.attention.rope for layer in layers))
    blocks: list[Block] = []
    for i, layer in enumerate(layers, first_layer):
        view, table = views.index(attention_view(layer.attention)), ropes.index(layer.attention.rope)
        blocks.append(make_block(layer, parts[i], LayerContext(view, table, dtype, device)))
    paged = attends_to_all(dtype, device)
    scaled = first_layer == 0 and decoder.embedding_scale != 1.0
    return Slice(
        spec=spec,
        dtype=dtype,
        device=device,
        blocks=tuple(blocks),
        caches=tuple(layer.cache for layer in layers),
        views=views,
        rotaries=tuple(make_rotary(rope, device) for rope in ropes),
        embedding=make_embedding(parts["embedding"], dtype) if first_layer == 0 else None,
        embedding_scale=torch.tensor(decoder.embedding_scale, dtype=dtype, device=device) if scaled else None,
        head=_head(spec, parts) if end_layer == spec.n_layers else None,
        paged=paged,
        steady=runs_triton(device) and all(block.feed_forward.steady for block in blocks),
    )


def _head(spec: ModelSpec, parts: Mapping[Part, PartWeights]) -> Head:
    """A tied head is the embedding's own matrix, as it is looked up in: plain, or encoded."""
    ends = parts["norm"].tensors
    norm = make_norm(spec.decoder.norm, ends["final_norm"], ends.get("final_norm_bias"))
    if spec.tied:
        bias = parts["head"].tensors["head_bias"] if spec.decoder.head_bias else None
        encoded, plain = parts["embedding"].encoded, parts["embedding"].tensors
        linear: Linear = EncodedLinear(encoded["embedding"], bias) if encoded else PlainLinear(plain["embedding"], bias)
    else:
        linear = parts["head"].linears["head"]
    return Head(norm, linear, spec.decoder.logit_softcap)


class Captured(Protocol):
    """Decode steps of one slice and pool that need no launching kernel by kernel (see decode_graphs.py)."""

    def takes(self, columns: DecodeColumns) -> bool: ...

    def replay(self, columns: DecodeColumns, hidden: Tensor | None) -> Tensor:
        """What `decode_rows` would return."""
        ...


def forward(
    part: Slice,
    pool: KvPool,
    batch: Batch,
    rows: Sequence[OpenRow],
    hidden: Tensor | None,
    captured: Captured | None = None,
) -> Tensor | SampledTensors:
    """Hidden states for the next stage, or from the last one the drawn tokens of the rows that are sampled."""
    if part.embedding is None:
        _check_hidden(part, batch, hidden)
    if part.paged and is_decode(batch):
        columns = decode_columns(batch, rows, pool.block_size, part.views, part.rotaries)
        if captured is not None and captured.takes(columns):
            output = captured.replay(columns, hidden)
        else:
            output = decode_rows(part, pool, on_device(columns, pool.block_size, part.device), hidden)
        return _draw(part, output, batch, rows) if part.is_last else output
    x = _through(part, pool, batch, rows, hidden)
    return _exit(part, x, batch, rows) if part.is_last else x


def decode_rows(part: Slice, pool: KvPool, inputs: DecodeInputs, hidden: Tensor | None) -> Tensor:
    """One token per row: their hidden states, or from the last slice their logits. Only enqueues, the same for the same
    shapes, if the slice is steady.
    """
    plan = inputs.plan(len(part.views))
    x = _layers(part, pool, plan, inputs.lengths(len(part.views)), enter(part, inputs.tokens, hidden))
    return x if part.head is None else part.head(x)


def _through(part: Slice, pool: KvPool, batch: Batch, rows: Sequence[OpenRow], hidden: Tensor | None) -> Tensor:
    x = enter(part, to_device(batch.tokens, part.device) if part.is_first else None, hidden)
    if not batch.n_tokens:
        return x
    alone = part.paged and part.device.type == "cpu"
    plan = plan_step(batch, rows, pool.block_size, part.views, part.dtype, part.device, alone=alone)
    grown = [
        to_device(lengths(rotary.spec, batch, rows), part.device)
        for rotary in part.rotaries
        if rotary.spec.depends_on_length
    ]
    return _layers(part, pool, plan, grown, x)


def _layers(part: Slice, pool: KvPool, plan: StepPlan, grown: Sequence[Tensor], x: Tensor) -> Tensor:
    tables = rotary_tables(part, plan.positions, grown)
    for block, cache in zip(part.blocks, pool.layers, strict=True):
        x = block(x, cache, plan, tables)
    return x


def rotary_tables(part: Slice, positions: Tensor, grown: Sequence[Tensor]) -> list[RotaryTable]:
    """Of tokens at these positions; `grown`: their lengths for each rotary that depends on them."""
    rest = iter(grown)
    return [
        rotary.tables(positions, next(rest) if rotary.spec.depends_on_length else None, part.dtype)
        for rotary in part.rotaries
    ]


def _check_hidden(part: Slice, batch: Batch, hidden: Tensor | None) -> None:
    if hidden is None or hidden.shape != (batch.n_tokens, part.spec.hidden) or hidden.dtype != part.dtype:
        what = "nothing" if hidden is None else f"{hidden.dtype}{tuple(hidden.shape)}"
        raise ValueError(f"a stage of {part.dtype}[{batch.n_tokens}, {part.spec.hidden}] was given {what}")


def enter(part: Slice, tokens: Tensor | None, hidden: Tensor | None) -> Tensor:
    """The states [n, hidden] that the slice's first layer is given."""
    if part.embedding is None:
        assert hidden is not None
        return hidden
    assert tokens is not None
    x = part.embedding(tokens)
    return x if part.embedding_scale is None else x * part.embedding_scale


def _exit(part: Slice, x: Tensor, batch: Batch, rows: Sequence[OpenRow]) -> SampledTensors:
    """Only the last token of each sampled row goes through the norm and the head."""
    sampled = np.flatnonzero(batch.sample)
    if part.head is None or not len(sampled):
        return _nothing(part)
    if len(sampled) < batch.n_tokens:
        x = x.index_select(0, to_device(np.cumsum(batch.length, dtype=np.int64)[sampled] - 1, part.device))
    return sample(part.head(x), _picks(batch, rows))


def _draw(part: Slice, logits: Tensor, batch: Batch, rows: Sequence[OpenRow]) -> SampledTensors:
    """From the logits of all rows of a decode step."""
    sampled = np.flatnonzero(batch.sample)
    if not len(sampled):
        return _nothing(part)
    if len(sampled) < len(rows):
        logits = logits.index_select(0, to_device(sampled, part.device))
    return sample(logits, _picks(batch, rows))


def _nothing(part: Slice) -> SampledTensors:
    nothing = torch.empty(0, dtype=torch.int64, device=part.device)
    return SampledTensors(token=nothing, best=nothing)


def _picks(batch: Batch, rows: Sequence[OpenRow]) -> list[Pick]:
    sampled = np.flatnonzero(batch.sample)
    ends = (batch.position + batch.length)[sampled].tolist()
    return [_pick(rows[row], end) for row, end in zip(sampled.tolist(), ends, strict=True)]


def _pick(row: OpenRow, position: int) -> Pick:
    if row.params is None:
        raise ValueError(f"row {row.row} is to be sampled and has no parameters")
    return Pick(params=row.params, position=position, prompt_tokens=row.prompt_tokens, history=row.history.column)
