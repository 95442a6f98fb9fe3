"""A list of operations that C runs in one call, for one new token of a few rows (see program.c).

A program owns its buffers and keeps what it points to alive; one run at a time. Knows operations, no layer.
"""

import ctypes
import enum
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from hydra.kernels.native.library import BufferStruct, NativeLibrary, OperationStruct, StepStruct, TableStruct
from hydra.kernels.native.products import INPUT_ROWS_MAX, NativeMatrix


class OperationKind(enum.IntEnum):
    """What an operation does; its fields are said in program.c."""

    NORM = 0
    PRODUCT = 1
    BIAS = 2
    ADD = 3
    GATE = 4
    ROTATE = 5
    GROW = 6  # queries, by what the rotation's table says
    KEEP = 7  # keys and values, in the pool
    ATTEND = 8


@attrs.frozen(eq=False)
class RotationTable:
    """Of a step's tokens: cosines and signed sines float32 [n, channels], and what queries grow by, [n] or None."""

    cos: Tensor
    signed_sin: Tensor
    query_scale: Tensor | None


@attrs.frozen(eq=False)
class ProgramStep:
    """What differs between runs. Integers as in DecodeInputs: int64 [n], the blocks int32 [n, blocks]."""

    tables: Sequence[RotationTable]
    firsts: Sequence[Tensor]  # of each view
    slots: Tensor
    reach: Tensor
    blocks: Tensor
    block_size: int


class ProgramBuilder:
    """Collects operations; a buffer is known by its number."""

    def __init__(self) -> None:
        self._operations: list[OperationStruct] = []
        self._widths: list[int] = []
        self._kept: list[object] = []

    def buffer(self, width: int) -> int:
        """A new one, of `width` numbers for each row."""
        self._widths.append(width)
        return len(self._widths) - 1

    def width(self, buffer: int) -> int:
        return self._widths[buffer]

    def add(self, kind: OperationKind, into: int, out: int, *kept: object, **fields: Any) -> None:
        """One operation more; `kept` lives as long as the program."""
        self._operations.append(OperationStruct(kind=kind, out=out, **{"in": into}, **fields))
        self._kept.extend(kept)

    def product(self, matrix: NativeMatrix, into: int, out: int, out_at: int = 0) -> None:
        assert self._widths[into] == matrix.struct.columns
        assert out_at + matrix.struct.rows <= self._widths[out]
        self.add(OperationKind.PRODUCT, into, out, matrix, data=ctypes.addressof(matrix.struct), out_at=out_at)

    def build(self, library: NativeLibrary) -> "Program":
        operations = (OperationStruct * len(self._operations))(*self._operations)
        memory = [torch.zeros(INPUT_ROWS_MAX, width) for width in self._widths]
        buffers = (BufferStruct * len(memory))(*(BufferStruct(own.data_ptr(), own.shape[1]) for own in memory))
        return Program(library, operations, buffers, memory, self._kept)


@attrs.frozen(eq=False)
class Program:
    """Ready to run. Raises MemoryError where a product gets none."""

    library: NativeLibrary
    operations: Any
    buffers: Any
    memory: list[Tensor]  # float32 [INPUT_ROWS_MAX, width] of each buffer
    kept: list[object]

    def run(self, n_rows: int, step: ProgramStep) -> None:
        assert 0 < n_rows <= INPUT_ROWS_MAX and step.blocks.stride(1) == 1
        tables = (TableStruct * max(1, len(step.tables)))(*(_table(table) for table in step.tables))
        firsts = (ctypes.c_void_p * max(1, len(step.firsts)))(*(first.data_ptr() for first in step.firsts))
        struct = StepStruct(
            ctypes.addressof(self.operations),
            ctypes.addressof(self.buffers),
            ctypes.addressof(tables),
            ctypes.addressof(firsts),
            step.slots.data_ptr(),
            step.reach.data_ptr(),
            step.blocks.data_ptr(),
            step.blocks.stride(0),
            step.block_size,
            len(self.operations),
            n_rows,
            torch.get_num_threads(),
        )
        if self.library.run(struct):
            raise MemoryError("no memory for a product")


def _table(table: RotationTable) -> TableStruct:
    assert table.cos.is_contiguous() and table.signed_sin.is_contiguous() and table.cos.dtype == torch.float32
    scale = None if table.query_scale is None else table.query_scale.data_ptr()
    return TableStruct(table.cos.data_ptr(), table.signed_sin.data_ptr(), scale, table.cos.shape[-1])
