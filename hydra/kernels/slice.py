"""One worker's share of a model, ready to run: some layers, with the embedding or the norm and head at the ends.

`forward` takes a step through it and only enqueues on the slice's device. Holds references to parts that other slices
may share; knows nothing of reading, freeing or waiting.
"""

from collections.abc import Mapping, Sequence

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hydra.kernels.attention import plan_step
from hydra.kernels.decoder import LayerWeights, decode
from hydra.kernels.kv_pool import KvPool
from hydra.kernels.layers import rms_norm, rotary_frequencies, rotary_tables
from hydra.kernels.products import linear
from hydra.kernels.sampling import Drawn, Pick, sample
from hydra.kernels.tensors import put
from hydra.kernels.weights import Part, PartWeights
from hydra.protocol.batch import Batch, OpenRow
from hydra.protocol.model_spec import ModelSpec


@attrs.frozen(eq=False, kw_only=True)
class Slice:
    """Exactly the first slice has an embedding it reads tokens with, exactly the last a norm and a head."""

    spec: ModelSpec
    dtype: torch.dtype
    device: torch.device
    frequencies: Tensor
    layers: tuple[LayerWeights, ...]
    embedding: Tensor | None
    norm: Tensor | None
    head: Tensor | None

    @property
    def is_first(self) -> bool:
        return self.embedding is not None

    @property
    def is_last(self) -> bool:
        return self.head is not None

    def pool(self, n_blocks: int, block_size: int) -> KvPool:
        """A pool that fits this slice's layers."""
        return KvPool(
            n_layers=len(self.layers),
            n_blocks=n_blocks,
            block_size=block_size,
            n_kv_heads=self.spec.n_kv_heads,
            head_dim=self.spec.head_dim,
            dtype=self.dtype,
            device=self.device,
        )


def build_slice(
    spec: ModelSpec,
    first_layer: int,
    end_layer: int,
    parts: Mapping[Part, PartWeights],
    dtype: torch.dtype,
    device: torch.device,
) -> Slice:
    """A slice over parts already in memory; a part that is missing or of the wrong kind is our own mistake."""

    def end(part: Part) -> Tensor:
        weights = parts[part]
        assert isinstance(weights, Tensor)
        return weights

    layers = [parts[i] for i in range(first_layer, end_layer)]
    is_last = end_layer == spec.n_layers
    return Slice(
        spec=spec,
        dtype=dtype,
        device=device,
        frequencies=rotary_frequencies(spec.head_dim, spec.rope_theta, device),
        layers=tuple(layer for layer in layers if isinstance(layer, LayerWeights)),
        embedding=end("embedding") if first_layer == 0 else None,
        norm=end("norm") if is_last else None,
        head=end("embedding" if spec.tied else "head") if is_last else None,
    )


def forward(part: Slice, pool: KvPool, batch: Batch, rows: Sequence[OpenRow], hidden: Tensor | None) -> Tensor | Drawn:
    """Hidden states for the next stage, or from the last one the drawn tokens of the rows that are sampled."""
    x = _entry(part, batch, hidden)
    if batch.n_tokens > 0:
        plan = plan_step(batch, rows, pool.block_size, part.dtype, part.device)
        rotary = rotary_tables(plan.positions, part.frequencies, part.dtype)
        for weights, cache in zip(part.layers, pool.layers, strict=True):
            x = decode(x, weights, part.spec, cache, plan, rotary)
    return _exit(part, x, batch, rows) if part.is_last else x


def _entry(part: Slice, batch: Batch, hidden: Tensor | None) -> Tensor:
    if part.embedding is not None:
        return functional.embedding(put(batch.tokens, part.device), part.embedding)
    if hidden is None or hidden.shape != (batch.n_tokens, part.spec.hidden) or hidden.dtype != part.dtype:
        what = "nothing" if hidden is None else f"{hidden.dtype}{tuple(hidden.shape)}"
        raise ValueError(f"a stage of {part.dtype}[{batch.n_tokens}, {part.spec.hidden}] was given {what}")
    return hidden


def _exit(part: Slice, x: Tensor, batch: Batch, rows: Sequence[OpenRow]) -> Drawn:
    """Only the last token of each sampled row goes through the norm and the head."""
    sampled = np.flatnonzero(batch.sample)
    ends = (batch.position + batch.length)[sampled].tolist()
    picks = [_pick(rows[row], end) for row, end in zip(sampled.tolist(), ends, strict=True)]
    if part.norm is None or part.head is None or not picks:
        nothing = torch.empty(0, dtype=torch.int64, device=part.device)
        return Drawn(nothing, nothing)
    if len(sampled) < batch.n_tokens:
        x = x.index_select(0, put(np.cumsum(batch.length, dtype=np.int64)[sampled] - 1, part.device))
    return sample(linear(rms_norm(x, part.norm, part.spec.norm_eps), part.head).to(torch.float32), picks)


def _pick(row: OpenRow, position: int) -> Pick:
    if row.params is None:
        raise ValueError(f"row {row.row} is to be sampled and has no parameters")
    return Pick(params=row.params, position=position, prompt_tokens=row.prompt_tokens, history=row.history)
