"""The parts a model's weights come in, read: filled by place, and refused unless every row of every matrix is there.

Fused matrices are filled in place, because the rows of each published tensor stay together. Knows canonical places, no
published names, no route and no memory limit.
"""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from hydra.kernels.weights.part_weights import PartTensors
from hydra.kernels.weights.reader import read_ranges
from hydra.kernels.weights.weight_memory import weight_memory
from hydra.protocol.model.layout import Part, is_norm, part_of, part_shapes, place_of
from hydra.protocol.model.model_spec import ModelShape, TensorRange, WeightRole
from hydra.protocol.progress import Progress
from hydra.protocol.refusal import refuse

_Block: TypeAlias = tuple[WeightRole, int | None]  # a matrix, or one expert's share of it


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
    filled_parts: dict[Part, PartTensors] = {}
    wanted: list[tuple[TensorRange, Tensor]] = []
    for part in sorted(parts, key=str):
        shapes = part_shapes(shape, part)
        filled_parts[part] = {role: weight_memory(size, dtype, device) for role, size in shapes.items()}
        wanted += _placed(part, filled_parts[part], sources[part])
    read_bytes = _read(folder, wanted, progress)
    _check_norms([(source, target) for source, target in wanted if is_norm(place_of(source).role)])
    return filled_parts, read_bytes


def _read(folder: Path, wanted: Sequence[tuple[TensorRange, Tensor]], progress: Progress) -> int:
    """What lies transposed is read one after the other, behind all else, so that only one is there twice."""
    straight = [pair for pair in wanted if place_of(pair[0]).converted != "transposed"]
    transposed = [pair for pair in wanted if place_of(pair[0]).converted == "transposed"]
    total, done = sum(source.length for source, _ in wanted), 0
    if straight:
        done = read_ranges(folder, straight, lambda n_bytes, _: progress(n_bytes, total))
    for source, target in transposed:
        lying = weight_memory((target.shape[1], target.shape[0]), target.dtype, target.device)
        before = done
        done += read_ranges(
            folder, [(source, lying)], lambda n_bytes, _, before=before: progress(before + n_bytes, total)
        )
        target.copy_(lying.T)
    return done


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


def _placed(part: Part, weights: PartTensors, sources: Iterable[TensorRange]) -> list[tuple[TensorRange, Tensor]]:
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


def _target(weights: PartTensors, source: TensorRange) -> Tensor:
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
