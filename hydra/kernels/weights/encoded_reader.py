"""Matrices that stay encoded: their bytes read, and brought into the form that is computed with.

One matrix after the other, so that no more than one is ever there twice. Knows ranges and forms, and no part of a
model.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor

from hydra.kernels.tensors import TORCH_DTYPES
from hydra.kernels.weights.converted import original_rows, undo
from hydra.kernels.weights.encoded.encoded_matrix import BlockMatrix, EncodedMatrix
from hydra.kernels.weights.encoded.unpack import UNPACKED_BLOCKS, unpack_blocks, unpack_matrix
from hydra.kernels.weights.reader import read_ranges
from hydra.kernels.weights.weight_memory import weight_memory
from hydra.protocol.model.encoding import BlockEncoding, GroupEncoding, PlainEncoding
from hydra.protocol.model.model_spec import TensorRange, WeightSide
from hydra.protocol.progress import Progress
from hydra.protocol.refusal import refuse

_CPU = torch.device("cpu")


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


def read_encoded(
    folder: Path, source: EncodedSource, dtype: torch.dtype, device: torch.device, progress: Progress
) -> EncodedMatrix | Tensor:
    """The matrix on its device; a plain one in `dtype`. Refuses: bad_model, unsupported."""
    values = source.values
    if isinstance(values.encoding, PlainEncoding):
        return read_plain(folder, values, source.head_dim, dtype, device, progress)
    raw: dict[WeightSide, Tensor] = {
        "values": weight_memory((values.length,), torch.uint8, _CPU),
        **{name: _side_memory(side) for name, side in source.sides.items()},
    }
    ranges = [(values, raw["values"]), *((side, raw[name]) for name, side in source.sides.items())]
    read_ranges(folder, ranges, progress)
    matrix = _to_matrix(source, raw)
    if values.place is not None and values.place.converted == "interleaved":
        matrix = matrix.take(original_rows(matrix.rows, source.head_dim))
    return matrix.to(device)


def read_plain(
    folder: Path, values: TensorRange, head_dim: int, dtype: torch.dtype, device: torch.device, progress: Progress
) -> Tensor:
    """One plain tensor, as its maker had it before it was converted; undone in the dtype that it is stored in."""
    assert isinstance(values.encoding, PlainEncoding)
    stored = weight_memory(values.shape, TORCH_DTYPES[values.encoding.dtype], _CPU)
    read_ranges(folder, [(values, stored)], progress)
    numbers = undo(values.place.converted if values.place is not None else "", stored, head_dim)
    brought = numbers.to(dtype)
    if dtype == torch.float16 and bool((torch.isinf(brought) & torch.isfinite(numbers)).any()):
        raise refuse("unsupported", f"{values.file}: {values.name} overflows float16; load it as float32")
    return brought.to(device)


def _side_memory(side: TensorRange) -> Tensor:
    return torch.empty(side.length, dtype=torch.uint8)


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
    assert source.place is not None
    return source.place.role, source.place.layer, source.place.expert, source.place.first_row


def shifted(progress: Progress, done_before: int, total: int) -> Progress:
    """Progress of one of several reads, told as progress of all."""
    return lambda done, _: progress(done_before + done, total)
