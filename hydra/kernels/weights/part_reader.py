"""The parts a model's weights come in, read: filled by place, and refused unless every row of every matrix is there.

Fused matrices are filled in place, because the rows of each published tensor stay together; one that stays encoded is
kept as the pieces that it is published in. Knows canonical places, no published names, no route and no memory limit.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import attrs
import torch
from torch import Tensor

from hydra.kernels.weights.encoded.encoded_matrix import EncodedMatrix
from hydra.kernels.weights.encoded_reader import EncodedSource, check_lengths, read_published, shifted, sides_of
from hydra.kernels.weights.encoded_rows import EncodedExperts, EncodedRows
from hydra.kernels.weights.part_weights import PartTensors
from hydra.kernels.weights.reader import read_ranges
from hydra.kernels.weights.weight_memory import weight_memory
from hydra.protocol.model.layout import Part, is_norm, part_of, part_shapes, place_of
from hydra.protocol.model.model_spec import ModelShape, TensorRange, WeightRole
from hydra.protocol.progress import Progress
from hydra.protocol.refusal import refuse

_Block: TypeAlias = tuple[WeightRole, int | None]  # a matrix, or one expert's share of it
_Piece: TypeAlias = tuple[int | None, EncodedMatrix | Tensor]  # the expert that it belongs to, if any


@attrs.frozen(eq=False)
class _PartPlan:
    """One part before anything is read. `apart` are matrices of which something is encoded: each of their published
    tensors is read alone; `converted` are plain tensors that are not as their maker had them.
    """

    tensors: dict[WeightRole, Tensor]  # to be filled
    straight: list[tuple[TensorRange, Tensor]]
    converted: list[tuple[EncodedSource, Tensor]]
    apart: dict[WeightRole, list[EncodedSource]]

    def published(self) -> list[EncodedSource]:
        """What is read alone, in the order in which `filled` takes it."""
        sources = [source for source, _ in self.converted]
        return [*sources, *(source for role in self.apart.values() for source in role)]

    def filled(self, matrices: Iterator[EncodedMatrix | Tensor]) -> PartTensors:
        for _, target in self.converted:
            target.copy_(_plain(next(matrices)))
        apart = {
            role: _joined([(place_of(source.values).expert, next(matrices)) for source in sources])
            for role, sources in self.apart.items()
        }
        return {**self.tensors, **apart}


def _plain(matrix: EncodedMatrix | Tensor) -> Tensor:
    assert isinstance(matrix, Tensor), "a plain range was read as something else"
    return matrix


def fetch_parts(
    shape: ModelShape,
    parts: Collection[Part],
    tensors: Sequence[TensorRange],
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
) -> tuple[dict[Part, PartTensors], int]:
    """Reads exactly these parts' ranges; returns them and the bytes read. Refuses: bad_model, unsupported."""
    sources = _by_part(parts, tensors)
    plans = {part: _plan(shape, part, sources[part], dtype, device) for part in sorted(parts, key=str)}
    total = sum(source.length for part in parts for source in sources[part])
    straight = [pair for plan in plans.values() for pair in plan.straight]
    read_bytes = read_ranges(folder, straight, shifted(progress, 0, total)) if straight else 0
    filled: dict[Part, PartTensors] = {}
    for part, plan in plans.items():
        published = plan.published()
        matrices = read_published(folder, published, dtype, device, shifted(progress, read_bytes, total))
        filled[part] = plan.filled(matrices)
        read_bytes += sum(source.n_bytes for source in published)
    norms = [pair for plan in plans.values() for pair in _norms(plan)]
    _check_norms(norms)
    return filled, read_bytes


def _check_norms(norms: Sequence[tuple[TensorRange, Tensor]]) -> None:
    """All at once: a device is waited for a single time."""
    if not norms:
        return
    finite = torch.stack([torch.isfinite(target).all() for _, target in norms]).tolist()
    for (source, _), is_finite in zip(norms, finite, strict=True):
        if not is_finite:
            raise refuse("bad_model", f"{source.file}: {source.name} holds NaN or infinity; the file is damaged")


def _by_part(parts: Collection[Part], tensors: Sequence[TensorRange]) -> dict[Part, list[TensorRange]]:
    sources: dict[Part, list[TensorRange]] = {part: [] for part in parts}
    for source in tensors:
        try:
            part = part_of(source)
        except KeyError:
            raise refuse("bad_model", f"{source.file}: {source.name} has no layer to go to") from None
        if part in sources:
            sources[part].append(source)
    return sources


def _plan(
    shape: ModelShape, part: Part, sources: Sequence[TensorRange], dtype: torch.dtype, device: torch.device
) -> _PartPlan:
    values = [source for source in sources if place_of(source).side == "values"]
    beside = sides_of(values, [source for source in sources if place_of(source).side != "values"])
    encoded = {place_of(source).role for source in values if source.encoding.kept_bytes(source.shape) is not None}
    memory = {
        role: torch.empty(size, device="meta") if role in encoded else weight_memory(size, dtype, device)
        for role, size in part_shapes(shape, part).items()
    }
    plan = _PartPlan({role: tensor for role, tensor in memory.items() if not tensor.is_meta}, [], [], {})
    head_dim = shape.decoder.layer(part).attention.head_dim if isinstance(part, int) else 0
    for (values_range, target), sides in zip(_placed(part, memory, values), beside, strict=True):
        source, place = EncodedSource(values_range, sides, head_dim), place_of(values_range)
        if target.is_meta:
            check_lengths(source)
            plan.apart.setdefault(place.role, []).append(source)
        elif sides:
            raise refuse("bad_model", f"{values_range.file}: {values_range.name} is plain, and has scales beside it")
        elif place.converted:
            check_lengths(source)
            plan.converted.append((source, target))
        else:
            plan.straight.append((values_range, target))
    for published in plan.apart.values():
        published.sort(key=lambda source: (place_of(source.values).expert or 0, place_of(source.values).first_row))
    return plan


def _joined(pieces: Sequence[_Piece]) -> EncodedRows | EncodedExperts:
    if pieces[0][0] is None:
        return EncodedRows.of([piece for _, piece in pieces])
    by_expert: dict[int | None, list[EncodedMatrix | Tensor]] = {}
    for expert, piece in pieces:
        by_expert.setdefault(expert, []).append(piece)
    return EncodedExperts(tuple(EncodedRows.of(rows) for rows in by_expert.values()))


def _norms(plan: _PartPlan) -> list[tuple[TensorRange, Tensor]]:
    filled = [*plan.straight, *((source.values, target) for source, target in plan.converted)]
    return [(source, target) for source, target in filled if is_norm(place_of(source).role)]


def _placed(
    part: Part, weights: Mapping[WeightRole, Tensor], sources: Iterable[TensorRange]
) -> list[tuple[TensorRange, Tensor]]:
    """Each range with the memory it fills; together they must fill all of the part, and no row twice."""
    wanted: list[tuple[TensorRange, Tensor]] = []
    filled: dict[_Block, list[tuple[int, int, TensorRange]]] = {}
    for source in sources:
        place, target = place_of(source), _target(weights, source)
        wanted.append((source, target))
        span = (place.first_row, place.first_row + target.shape[0], source)
        filled.setdefault((place.role, place.expert), []).append(span)
    for role, tensor in weights.items():
        whole = filled.pop((role, None), None)
        if whole is not None:
            _check_tiled(part, role, whole, tensor.shape[0])
            continue
        if tensor.dim() < 3:
            raise _missing(part, role, 0, tensor.shape[0])
        for expert in range(tensor.shape[0]):
            _check_tiled(part, f"{role} of expert {expert}", filled.pop((role, expert), []), tensor.shape[1])
    for spans in filled.values():
        raise refuse("bad_model", f"{spans[0][2].file}: {spans[0][2].name} is part of what another tensor fills")
    return wanted


def _target(weights: Mapping[WeightRole, Tensor], source: TensorRange) -> Tensor:
    """The contiguous rows of a canonical matrix that a range fills."""
    place = place_of(source)
    matrix = weights.get(place.role)
    if matrix is None:
        raise refuse("unsupported", f"{source.file}: {source.name} is no part of a layer of this model's kind")
    if place.expert is not None:
        if matrix.dim() != 3 or place.expert >= matrix.shape[0]:
            raise refuse("bad_model", f"{source.file}: {source.name} is of expert {place.expert}, which there is not")
        matrix = matrix[place.expert]
    rows = source.shape[0] if source.shape else 0
    target = matrix[place.first_row : place.first_row + rows]
    if source.shape != tuple(target.shape):
        raise refuse(
            "bad_model",
            f"{source.file}: {source.name} has shape {source.shape}; rows from {place.first_row} on of "
            f"{place.role} have room for {tuple(target.shape)}",
        )
    return target


def _check_tiled(part: Part, what: str, spans: list[tuple[int, int, TensorRange]], height: int) -> None:
    reached = 0
    for first, end, source in sorted(spans, key=lambda span: span[:2]):
        if first < reached:
            raise refuse("bad_model", f"{source.file}: {source.name} overlaps another tensor's rows of {what}")
        if first > reached:
            raise _missing(part, what, reached, first)
        reached = end
    if reached != height:
        raise _missing(part, what, reached, height)


def _missing(part: Part, what: str, first: int, end: int) -> Exception:
    where = f"layer {part}" if isinstance(part, int) else f"the {part}"
    return refuse("bad_model", f"no tensor fills rows {first} to {end - 1} of {what} in {where}")
