"""A matrix as the compiled products see it: pointers into tensors that it keeps alive, checked once when it is made.

Each constructor takes the tensors of one form and returns None where the compiled products have no way for them, or
where there is no library. Knows what lies where in memory, and not what a form means.
"""

import ctypes
import struct
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from hydra.kernels.native.library import MatrixStruct, NativeLibrary, native_library

INPUT_ROWS_MAX = 16  # of input, in one product
BLOCK_NUMBERS = {"Q5_0": 0, "Q5_1": 1, "Q2_K": 2, "Q3_K": 3, "Q4_K": 4, "Q5_K": 5, "Q6_K": 6, "IQ4_XS": 7}
_NIBBLES, _BYTES, _BLOCKS, _FLOAT8, _DENSE = range(5)
_MIDDLE, _ZEROS, _MINIMA, _TABLE, _FLOAT_TABLE = range(5)
_NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_TABLE_STEPS = (1.0, 0.5, 0.25, 0.125)  # what a table of whole numbers may be multiples of


@attrs.frozen(eq=False)
class NativeMatrix:
    """One matrix on the CPU. Made by the constructors below; the tensors must not be written to."""

    library: NativeLibrary
    struct: MatrixStruct
    kept: tuple[Tensor | None, ...]  # whose memory `struct` points to

    def product(self, x: Tensor) -> Tensor:
        """float32 [n, columns] times the transpose of the matrix, n at most INPUT_ROWS_MAX: float32 [n, rows]."""
        n, columns = x.shape
        assert n <= INPUT_ROWS_MAX and columns == self.struct.columns and x.dtype == torch.float32, x.shape
        x = x.contiguous()
        output = torch.empty((n, self.struct.rows), dtype=torch.float32)
        if n:
            threads = torch.get_num_threads()
            at = ctypes.byref(self.struct)
            _check(self.library.product(at, x.data_ptr(), n, output.data_ptr(), self.struct.rows, threads))
        return output

    def decode(self, first: int, end: int) -> Tensor:
        """Rows [first, end) of the matrix as float32."""
        assert 0 <= first <= end <= self.struct.rows
        output = torch.empty((end - first, self.struct.columns), dtype=torch.float32)
        threads, at = torch.get_num_threads(), ctypes.byref(self.struct)
        _check(self.library.decode(at, None, first, end - first, output.data_ptr(), threads))
        return output

    def decode_rows(self, rows: Tensor) -> Tensor:
        """The rows of these numbers (int64), in their order, as float32."""
        rows = rows.contiguous()
        assert rows.dtype == torch.int64 and rows.dim() == 1
        if rows.numel():
            low, high = torch.aminmax(rows)
            if int(low) < 0 or int(high) >= self.struct.rows:
                raise IndexError(f"rows {int(low)} to {int(high)} of a matrix of {self.struct.rows}")
        output = torch.empty((rows.numel(), self.struct.columns), dtype=torch.float32)
        threads, at = torch.get_num_threads(), ctypes.byref(self.struct)
        _check(self.library.decode(at, rows.data_ptr(), 0, rows.numel(), output.data_ptr(), threads))
        return output


def _check(code: int) -> None:
    if code:
        raise MemoryError("no memory for a product")


def native_groups(
    codes: Tensor,
    scales: Tensor,
    *,
    bits: int,
    group_columns: int,
    zeros: Tensor | None = None,
    minima: Tensor | None = None,
    table: Tensor | None = None,
) -> NativeMatrix | None:
    """Codes of 4 or 8 bits in groups along a row (see GroupedMatrix, whose columns these are, without an order)."""
    columns = codes.shape[1] * 8 // bits
    fits = group_columns % 8 == 0 or group_columns >= columns
    if not fits or scales.dtype not in _NUMBERS or (minima is not None and minima.dtype != scales.dtype):
        return None
    if bits == 8 and (minima is not None or table is not None or (codes.dtype == torch.int8) != (zeros is None)):
        return None
    offset = _ZEROS if zeros is not None else _MINIMA if minima is not None else _MIDDLE
    fields: dict[str, object] = {}
    if table is not None:
        offset, fields = _table_fields(table)
    return _matrix(
        (codes, scales, zeros, minima),
        form=_NIBBLES if bits == 4 else _BYTES,
        rows=codes.shape[0],
        columns=columns,
        row_bytes=codes.shape[1],
        groups=scales.shape[1],
        group_columns=group_columns,
        number=_NUMBERS[scales.dtype],
        offset=offset,
        **fields,
    )


def native_blocks(name: str, data: Tensor, columns: int) -> NativeMatrix | None:
    """uint8 [rows, bytes of a row] in one of GGUF's block encodings."""
    if name not in BLOCK_NUMBERS:
        return None
    rows, row_bytes = data.shape
    block = BLOCK_NUMBERS[name]
    return _matrix((data,), form=_BLOCKS, rows=rows, columns=columns, row_bytes=row_bytes, block=block)


def native_float8(codes: Tensor, scales: Tensor, *, group_rows: int, group_columns: int) -> NativeMatrix | None:
    """float8 (e4m3fn) with a scale for each tile. One that holds what is no number is for torch's operators."""
    rows, columns = codes.shape
    if codes.dtype != torch.float8_e4m3fn or scales.dtype not in _NUMBERS:
        return None
    if group_columns % 8 and group_columns < columns:
        return None
    raw = codes.view(torch.uint8)
    if not native_library() or bool(((raw & 127) == 127).any()):
        return None
    return _matrix(
        (raw, scales),
        form=_FLOAT8,
        rows=rows,
        columns=columns,
        row_bytes=columns,
        groups=scales.shape[1],
        group_rows=group_rows,
        group_columns=group_columns,
        number=_NUMBERS[scales.dtype],
    )


def native_dense(matrix: Tensor) -> NativeMatrix | None:
    """Plain numbers: float32, bfloat16 or float16 [rows, columns]."""
    rows, columns = matrix.shape
    if matrix.dtype not in _NUMBERS:
        return None
    row_bytes = columns * matrix.element_size()
    number = _NUMBERS[matrix.dtype]
    fields = {"row_bytes": row_bytes, "group_columns": columns, "number": number}
    return _matrix((matrix,), form=_DENSE, rows=rows, columns=columns, **fields)


def _matrix(tensors: Sequence[Tensor | None], *, rows: int, columns: int, **fields: object) -> NativeMatrix | None:
    library = native_library()
    given = [tensor for tensor in tensors if tensor is not None]
    if library is None or not rows or not columns or any(tensor.device.type != "cpu" for tensor in given):
        return None
    kept = tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in kept]
    names = ("codes", "scales", "zeros", "minima")[: len(pointers)]
    struct = MatrixStruct(rows=rows, columns=columns, **dict(zip(names, pointers, strict=True)), **fields)
    return NativeMatrix(library, struct, kept)


def _table_fields(table: Tensor) -> tuple[int, dict[str, object]]:
    """A table of whole numbers (or halves, or quarters) becomes codes of its own; any other stays as it is."""
    numbers = [float(number) for number in table.tolist()]
    assert len(numbers) == 16
    for unit in _TABLE_STEPS:
        steps = [number / unit for number in numbers]
        lowest = min(steps)
        if all(step == round(step) for step in steps) and max(steps) - lowest <= 255 and lowest <= 0:
            codes = [round(step - lowest) for step in steps]
            fields = {"table_unit": unit, "table_middle": round(-lowest), "table": (ctypes.c_uint8 * 16)(*codes)}
            return _TABLE, fields
    packed = struct.pack("<16f", *numbers)
    return _FLOAT_TABLE, {
        "float_table": (ctypes.c_uint8 * 64)(*(packed[4 * i + b] for b in range(4) for i in range(16)))
    }
