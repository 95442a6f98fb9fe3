"""The forms in which an encoded matrix is kept, and what each of its numbers is.

Whatever a model's files hold becomes one of three forms at load. `decode` is their definition, in plain torch operators
on any device; a faster product has to agree with it. Knows no file, no scheme of publishing and no product.
"""

from typing import Protocol

import attrs
import torch
from torch import Tensor

from hydra.kernels.weights.encoded.block_decoders import decode_blocks
from hydra.protocol.model.encoding import BlockEncoding


class EncodedMatrix(Protocol):
    """[rows, columns] numbers. Rows are the outputs of a product."""

    @property
    def rows(self) -> int: ...

    @property
    def columns(self) -> int: ...

    @property
    def n_bytes(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def take(self, rows: slice | Tensor) -> "EncodedMatrix":
        """Some of the rows: a range of them without a copy, or those with these indices (int64) in their order."""
        ...

    def decode(self, dtype: torch.dtype) -> Tensor:
        """All of it, [rows, columns]: computed in float32, then rounded to `dtype`."""
        ...


@attrs.frozen(eq=False, kw_only=True)
class GroupedMatrix:
    """Codes of 4 or 8 bits in groups of `group_columns` along a row, each group with a scale: the one form of all
    formats that have no scale of scales.

    4 bits: byte b of a row holds column 2b in its low half and 2b + 1 in its high half; a number is scale * (code - 8),
    or scale * (code - zero), or scale * code + minimum, or scale * table[code]. 8 bits: a signed code, scale * code, or
    with a zero an unsigned one, scale * (code - zero). At most one of `zeros`, `minima` and `table` is there.
    """

    codes: Tensor  # uint8 [rows, columns * bits / 8]; int8 where 8-bit codes are signed
    scales: Tensor  # float16, bfloat16 or float32 [rows, groups]
    bits: int
    group_columns: int
    zeros: Tensor | None = None  # uint8 [rows, groups]
    minima: Tensor | None = None  # as scales [rows, groups]
    table: Tensor | None = None  # float32 [16]
    order: Tensor | None = None  # int64 [columns]: the column of the input that belongs to each column of the codes

    def __attrs_post_init__(self) -> None:
        assert self.bits in (4, 8) and self.codes.dim() == 2 and self.codes.is_contiguous()
        assert sum(side is not None for side in (self.zeros, self.minima, self.table)) <= 1
        groups = -(-self.columns // self.group_columns)
        for side in (self.scales, self.zeros, self.minima):
            assert side is None or side.shape == (self.rows, groups), f"{side.shape} for {groups} groups"

    @property
    def rows(self) -> int:
        return self.codes.shape[0]

    @property
    def columns(self) -> int:
        return self.codes.shape[1] * 8 // self.bits

    @property
    def n_bytes(self) -> int:
        sides = (self.zeros, self.minima, self.table, self.order)
        return self.codes.nbytes + self.scales.nbytes + sum(side.nbytes for side in sides if side is not None)

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def take(self, rows: slice | Tensor) -> "GroupedMatrix":
        zeros = None if self.zeros is None else self.zeros[rows]
        minima = None if self.minima is None else self.minima[rows]
        return attrs.evolve(self, codes=self.codes[rows], scales=self.scales[rows], zeros=zeros, minima=minima)

    def decode(self, dtype: torch.dtype) -> Tensor:
        scales = self._spread(self.scales.to(torch.float32))
        if self.table is not None:
            numbers = self.table[self._plain_codes().to(torch.int64)].mul_(scales)
        elif self.minima is not None:
            numbers = torch.addcmul(self._spread(self.minima.to(torch.float32)), self._plain_codes(), scales)
        else:
            middle = 8.0 if self.bits == 4 else 0.0
            zeros = middle if self.zeros is None else self._spread(self.zeros.to(torch.float32))
            numbers = self._plain_codes().to(torch.float32).sub_(zeros).mul_(scales)
        if self.order is not None:  # back to the order of the input
            numbers = torch.empty_like(numbers).index_copy_(1, self.order, numbers)
        return numbers.to(dtype)

    def _plain_codes(self) -> Tensor:
        """One code per element, [rows, columns]."""
        if self.bits == 8:
            return self.codes
        return torch.stack((self.codes & 15, self.codes >> 4), -1).view(self.rows, self.columns)

    def _spread(self, side: Tensor) -> Tensor:
        """One number per group to one per column."""
        return side.repeat_interleave(self.group_columns, 1)[:, : self.columns]


@attrs.frozen(eq=False, kw_only=True)
class BlockMatrix:
    """A matrix in one of GGUF's encodings, byte for byte as the file has it."""

    encoding: BlockEncoding
    data: Tensor  # uint8 [rows, bytes of a row]

    @property
    def rows(self) -> int:
        return self.data.shape[0]

    @property
    def columns(self) -> int:
        return self.data.shape[1] // self.encoding.block_bytes * self.encoding.columns

    @property
    def n_bytes(self) -> int:
        return self.data.nbytes

    @property
    def device(self) -> torch.device:
        return self.data.device

    def take(self, rows: slice | Tensor) -> "BlockMatrix":
        return attrs.evolve(self, data=self.data[rows])

    def decode(self, dtype: torch.dtype) -> Tensor:
        return decode_blocks(self.encoding.name, self.data).to(dtype)


@attrs.frozen(eq=False, kw_only=True)
class Float8Matrix:
    """One float8 (e4m3fn) per number, and a scale for each tile of `group_rows` x `group_columns` of them."""

    codes: Tensor  # float8_e4m3fn [rows, columns]
    scales: Tensor  # float32 [tiles down, tiles across]
    group_rows: int
    group_columns: int

    @property
    def rows(self) -> int:
        return self.codes.shape[0]

    @property
    def columns(self) -> int:
        return self.codes.shape[1]

    @property
    def n_bytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def take(self, rows: slice | Tensor) -> "Float8Matrix":
        """Rows that are not whole tiles get scales of their own."""
        index = torch.arange(self.rows, device=self.device)[rows] // self.group_rows
        return attrs.evolve(self, codes=self.codes[rows], scales=self.scales[index], group_rows=1)

    def decode(self, dtype: torch.dtype) -> Tensor:
        down = self.scales.repeat_interleave(self.group_rows, 0)[: self.rows]
        scales = down.repeat_interleave(self.group_columns, 1)[:, : self.columns]
        return self.codes.to(torch.float32).mul_(scales).to(dtype)
