"""The parts a model's weights come in, and where each published tensor lies inside them.

A part is one layer, the embedding, the final norm or the head: the unit that is read, held and freed. `fetch_parts`
reads whole parts or refuses; fused matrices are filled in place, because the rows of each published tensor stay
together. Knows the Llama names and shapes, no route and no memory limit.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from hydra.kernels.decoder import LayerWeights
from hydra.kernels.fresh import fresh
from hydra.kernels.products import pack
from hydra.kernels.reader import Progress, read_ranges
from hydra.protocol.model_spec import ModelSpec, TensorRange
from hydra.protocol.refusal import refuse

Part: TypeAlias = int | Literal["embedding", "norm", "head"]
PartWeights: TypeAlias = LayerWeights | Tensor

_ENDS: dict[str, Part] = {
    "model.embed_tokens.weight": "embedding",
    "model.norm.weight": "norm",
    "lm_head.weight": "head",
}


def slice_parts(spec: ModelSpec, first_layer: int, end_layer: int) -> frozenset[Part]:
    """The parts of layers [first_layer, end_layer); a tied head is the embedding, held once."""
    parts: set[Part] = set(range(first_layer, end_layer))
    if first_layer == 0:
        parts.add("embedding")
    if end_layer == spec.n_layers:
        parts |= {"norm", "embedding" if spec.tied else "head"}
    return frozenset(parts)


def part_bytes(weights: PartWeights) -> int:
    return weights.nbytes if isinstance(weights, Tensor) else weights.n_bytes


def fetch_parts(
    spec: ModelSpec,
    parts: Collection[Part],
    tensors: Sequence[TensorRange],
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
) -> tuple[dict[Part, PartWeights], int]:
    """Reads exactly these parts' ranges; returns them and the bytes read. Refuses: bad_model, unsupported."""
    ranges = _sorted_ranges(spec, parts, tensors)
    made: dict[Part, PartWeights] = {}
    wanted: list[tuple[TensorRange, Tensor]] = []
    for part in sorted(parts, key=str):
        weights, places = _make(spec, part, dtype, device)
        wanted += [_checked(part, name, place, ranges) for name, place in places.items()]
        _refuse_strangers(part, ranges, places)
        made[part] = weights
    read_bytes = read_ranges(folder, wanted, progress)
    for source, place in wanted:
        if source.name.endswith("norm.weight") and not bool(torch.isfinite(place).all()):
            raise refuse("bad_model", f"{source.file}: {source.name} holds NaN or infinity; the file is damaged")
    wanted.clear()  # its views would keep the plain matrices
    for part in made:
        made[part] = _packed(part, made[part])
    return made, read_bytes


def _packed(part: Part, weights: PartWeights) -> PartWeights:
    """An embedding stays plain: its rows are looked up, also where it is the head as well."""
    if isinstance(weights, LayerWeights):
        return weights.packed()
    return pack(weights) if part == "head" else weights


def _sorted_ranges(
    spec: ModelSpec, parts: Collection[Part], tensors: Sequence[TensorRange]
) -> dict[Part, dict[str, TensorRange]]:
    ranges: dict[Part, dict[str, TensorRange]] = {part: {} for part in parts}
    for source in tensors:
        part = _part_of(source.name)
        if part is None:
            raise refuse("unsupported", f"{source.file}: {source.name} belongs to no part of {spec.architecture}")
        if part in ranges and not source.name.endswith("rotary_emb.inv_freq"):  # a constant that old files carry
            ranges[part][source.name] = source
    return ranges


def _part_of(name: str) -> Part | None:
    if name in _ENDS:
        return _ENDS[name]
    head, _, rest = name.removeprefix("model.layers.").partition(".")
    return int(head) if name.startswith("model.layers.") and head.isdecimal() and rest else None


def _checked(
    part: Part, name: str, place: Tensor, ranges: Mapping[Part, Mapping[str, TensorRange]]
) -> tuple[TensorRange, Tensor]:
    source = ranges[part].get(name)
    if source is None:
        raise refuse("bad_model", f"the model has no tensor {name}; its config asks for it")
    if source.shape != tuple(place.shape):
        raise refuse(
            "bad_model", f"{source.file}: {name} has shape {source.shape}, its config asks for {tuple(place.shape)}"
        )
    return source, place


def _refuse_strangers(
    part: Part, ranges: Mapping[Part, Mapping[str, TensorRange]], places: Mapping[str, Tensor]
) -> None:
    """A tensor we would not use means a model we would compute wrongly."""
    for name in ranges[part].keys() - places.keys():
        raise refuse("unsupported", f"{ranges[part][name].file}: {name} is no part of a Llama layer we can compute")


def _make(
    spec: ModelSpec, part: Part, dtype: torch.dtype, device: torch.device
) -> tuple[PartWeights, dict[str, Tensor]]:
    """A part's memory, not yet filled, and where in it each published tensor lies."""
    if isinstance(part, int):
        return _make_layer(spec, part, dtype, device)
    name = next(name for name, end in _ENDS.items() if end == part)
    shape = (spec.hidden,) if part == "norm" else (spec.vocab, spec.hidden)
    whole = fresh(shape, dtype, device)
    return whole, {name: whole}


def _make_layer(
    spec: ModelSpec, layer: int, dtype: torch.dtype, device: torch.device
) -> tuple[LayerWeights, dict[str, Tensor]]:
    def empty(*shape: int) -> Tensor:
        return fresh(shape, dtype, device)

    q_rows, kv_rows = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    qkv_rows = (q_rows, kv_rows, kv_rows)
    weights = LayerWeights(
        attention_norm=empty(spec.hidden),
        qkv=empty(sum(qkv_rows), spec.hidden),
        qkv_bias=empty(sum(qkv_rows)) if spec.attention_bias else None,
        out=empty(spec.hidden, q_rows),
        out_bias=empty(spec.hidden) if spec.attention_bias else None,
        mlp_norm=empty(spec.hidden),
        gate_up=empty(2 * spec.intermediate, spec.hidden),
        gate_up_bias=empty(2 * spec.intermediate) if spec.mlp_bias else None,
        down=empty(spec.hidden, spec.intermediate),
        down_bias=empty(spec.hidden) if spec.mlp_bias else None,
    )
    qkv = tuple(f"self_attn.{letter}_proj" for letter in "qkv")
    places = {
        "input_layernorm.weight": weights.attention_norm,
        "post_attention_layernorm.weight": weights.mlp_norm,
        **dict(_projections(qkv, qkv_rows, weights.qkv, weights.qkv_bias)),
        **dict(_projections(("self_attn.o_proj",), (spec.hidden,), weights.out, weights.out_bias)),
        **dict(
            _projections(
                ("mlp.gate_proj", "mlp.up_proj"), (spec.intermediate,) * 2, weights.gate_up, weights.gate_up_bias
            )
        ),
        **dict(_projections(("mlp.down_proj",), (spec.hidden,), weights.down, weights.down_bias)),
    }
    return weights, {f"model.layers.{layer}.{name}": place for name, place in places.items()}


def _projections(
    names: tuple[str, ...], rows: tuple[int, ...], matrix: Tensor, bias: Tensor | None
) -> Iterator[tuple[str, Tensor]]:
    """Each projection's rows within the matrix (and the bias) they share."""
    for name, part in zip(names, torch.split(matrix, list(rows)), strict=True):
        yield f"{name}.weight", part
    if bias is not None:
        for name, part in zip(names, torch.split(bias, list(rows)), strict=True):
            yield f"{name}.bias", part
