"""Matrices that stay encoded: their bytes read, and brought into the form that is computed with.

One large matrix, or a few small ones, after the other: no more is ever there twice. Knows ranges and forms, and no
part of a model.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor

from hydra.kernels.tensors import TORCH_DTYPES
from hydra.kernels.weights.converted import original_rows, undo
from hydra.kernels.weights.encoded.encoded_matrix import BlockMatrix, EncodedMatrix
from hydra.kernels.weights.encoded.quantise import quantise
from hydra.kernels.weights.encoded.unpack import UNPACKED_BLOCKS, unpack_blocks, unpack_matrix
from hydra.kernels.weights.reader import read_ranges
from hydra.kernels.weights.staging import too_large
from hydra.kernels.weights.weight_memory import weight_memory
from hydra.protocol.model.encoding import BlockEncoding, GroupEncoding, PlainEncoding, QuantisedEncoding
from hydra.protocol.model.layout import place_of
from hydra.protocol.model.model_spec import TensorRange, WeightSide
from hydra.protocol.progress import Progress
from hydra.protocol.refusal import refuse

_CPU = torch.device("cpu")
BATCH_BYTES = 32 << 20  # of small matrices that are read together: what opening files costs is then little


@attrs.frozen(eq=False)
class EncodedSource:
    """The values of one published matrix, and whatever stands beside them; `head_dim` where its rows are heads."""

    values: TensorRange
    sides: Mapping[WeightSide, TensorRange]
    head_dim: int

    @property
    def n_bytes(self) -> int:
        return self.values.length + sum(side.length for side in self.sides.values())


def check_lengths(source: EncodedSource) -> None:
    """Refuses bad_model: a range that is not as long as its shape and encoding demand."""
    for stored in (source.values, *source.sides.values()):
        try:
            needed = stored.encoding.n_bytes(stored.shape)
        except ValueError as error:
            raise refuse("bad_model", f"{stored.file}: {stored.name}: {error}") from error
        if stored.length != needed or stored.offset < 0:
            raise refuse(
                "bad_model",
                f"{stored.file}: {stored.name} has {stored.length} bytes of {stored.encoding.name} at {stored.offset}, "
                f"but its shape {stored.shape} needs {needed}",
            )


def read_published(
    folder: Path, sources: Sequence[EncodedSource], dtype: torch.dtype, device: torch.device, progress: Progress
) -> Iterator[EncodedMatrix | Tensor]:
    """The matrices on their device, in order; plain ones in `dtype`. Small ones are read together, and made one after
    the other. Refuses: bad_model, unsupported.
    """
    total, done = sum(source.n_bytes for source in sources), 0
    for batch in _batches(sources):
        raw = [_memory_for(source) for source in batch]
        ranges = [pair for source, sides in zip(batch, raw, strict=True) for pair in _ranges(source, sides)]
        done += read_ranges(folder, ranges, shifted(progress, done, total))
        ranges.clear()
        for source in batch:
            yield _made(source, raw.pop(0), dtype, device).to(device)


def _batches(sources: Sequence[EncodedSource]) -> Iterator[list[EncodedSource]]:
    """Neighbours of together at most BATCH_BYTES; one that is larger is alone."""
    batch: list[EncodedSource] = []
    for source in sources:
        if batch and sum(one.n_bytes for one in batch) + source.n_bytes > BATCH_BYTES:
            yield batch
            batch = []
        batch.append(source)
    if batch:
        yield batch


def _memory_for(source: EncodedSource) -> dict[WeightSide, Tensor]:
    """For the bytes of the values and of each side."""
    return {
        "values": weight_memory((source.values.length,), torch.uint8, _CPU),
        **{name: torch.empty(side.length, dtype=torch.uint8) for name, side in source.sides.items()},
    }


def _ranges(source: EncodedSource, raw: Mapping[WeightSide, Tensor]) -> list[tuple[TensorRange, Tensor]]:
    return [(source.values, raw["values"]), *((side, raw[name]) for name, side in source.sides.items())]


def _made(
    source: EncodedSource, raw: Mapping[WeightSide, Tensor], dtype: torch.dtype, device: torch.device
) -> EncodedMatrix | Tensor:
    """As its maker had it, before it was converted."""
    values, converted = source.values, place_of(source.values).converted
    match values.encoding:
        case PlainEncoding() as encoding:
            numbers = _plain_numbers(source, encoding, raw["values"])
            brought = numbers.to(dtype)
            if dtype == torch.float16 and bool((torch.isinf(brought) & torch.isfinite(numbers)).any()):
                raise too_large(values)
            return brought
        case QuantisedEncoding() as encoding:  # on the device, which is quicker at it
            numbers = _plain_numbers(source, encoding.stored, raw["values"].to(device))
            return quantise(numbers, encoding.bits, name=f"{values.file}: {values.name}")
    matrix = _to_matrix(source, raw)
    return matrix.take(original_rows(matrix.rows, source.head_dim)) if converted == "interleaved" else matrix


def _plain_numbers(source: EncodedSource, encoding: PlainEncoding, raw: Tensor) -> Tensor:
    """In the dtype of the file."""
    stored = raw.view(TORCH_DTYPES[encoding.dtype]).view(source.values.shape)
    return undo(place_of(source.values).converted, stored, source.head_dim)


def _to_matrix(source: EncodedSource, raw: Mapping[WeightSide, Tensor]) -> EncodedMatrix:
    values = source.values
    rows, columns = values.shape
    match values.encoding:
        case BlockEncoding() as encoding:
            data = raw["values"].view(rows, -1)
            if encoding.name in UNPACKED_BLOCKS:
                return unpack_blocks(encoding.name, data)
            return BlockMatrix(encoding=encoding, data=data)
        case GroupEncoding() as encoding:
            sides = {name: (side.encoding, side.shape) for name, side in source.sides.items()}
            return unpack_matrix(encoding, (rows, columns), raw, sides, name=f"{values.file}: {values.name}")
        case other:
            raise refuse("bad_model", f"{values.file}: {values.name} is stored as {other.name}, which is no matrix")


def sides_of(values: Sequence[TensorRange], sides: Sequence[TensorRange]) -> list[Mapping[WeightSide, TensorRange]]:
    """For each range of values what stands beside it, by place. Refuses bad_model: a side of nothing, or one twice."""
    where = [_spot(source) for source in values]
    beside: dict[tuple[object, ...], dict[WeightSide, TensorRange]] = {spot: {} for spot in where}
    for side in sides:
        assert side.place is not None
        known = beside.get(_spot(side))
        if known is None or side.place.side in known:
            raise refuse("bad_model", f"{side.file}: {side.name} stands beside no matrix of its own")
        known[side.place.side] = side
    return [beside[spot] for spot in where]


def _spot(source: TensorRange) -> tuple[object, ...]:
    place = place_of(source)
    return place.role, place.layer, place.expert, place.first_row


def shifted(progress: Progress, done_before: int, total: int) -> Progress:
    """Progress of one of several reads, told as progress of all."""
    return lambda done, _: progress(done_before + done, total)
