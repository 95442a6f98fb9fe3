"""Products with an encoded matrix, and rows looked up in one.

A few rows of input are multiplied by what the device is fastest with; many rows by tiles that are decoded one after the
other, so that no more than one tile is ever held in full. Knows no layer and no model.
"""

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from hydra.kernels.native.products import ROWS_MAX, NativeMatrix
from hydra.kernels.weights.encoded.encoded_matrix import EncodedMatrix
from hydra.kernels.weights.encoded.native_form import native_form, order_of

TILE_NUMBERS = 4 << 20  # decoded at once: 16 MB in float32
_NATIVE_INPUT = (torch.float32, torch.bfloat16, torch.float16)


@attrs.frozen(eq=False)
class EncodedLinear:
    """x [n, columns] times the transpose of an encoded matrix, plus the bias where there is one: [n, rows]."""

    matrix: EncodedMatrix
    bias: Tensor | None = None
    native: NativeMatrix | None = attrs.field(
        init=False, default=attrs.Factory(lambda self: native_form(self.matrix), takes_self=True)
    )

    @property
    def n_bytes(self) -> int:
        return self.matrix.n_bytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        output = self._by_tiles(x) if self.native is None or x.dtype not in _NATIVE_INPUT else self._natively(x)
        return output if self.bias is None else output.add_(self.bias)

    def look_up(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows of these indices (int64), in their order: [n, columns]."""
        if self.native is None or order_of(self.matrix) is not None:
            return self.matrix.take(rows).decode(dtype)
        return self.native.decode_rows(rows).to(dtype)

    def _natively(self, x: Tensor) -> Tensor:
        """Few rows by the codes themselves; many by tiles that are decoded on the way."""
        assert self.native is not None
        order = order_of(self.matrix)
        if order is not None:
            x = x.index_select(1, order)
        if x.shape[0] <= ROWS_MAX:
            return self.native.product(x.to(torch.float32)).to(x.dtype)
        output = x.new_empty(x.shape[0], self.matrix.rows)
        for first, end in self._tiles():
            output[:, first:end] = functional.linear(x, self.native.decode(first, end).to(x.dtype))
        return output

    def _by_tiles(self, x: Tensor) -> Tensor:
        output = x.new_empty(x.shape[0], self.matrix.rows)
        for first, end in self._tiles():
            output[:, first:end] = functional.linear(x, self.matrix.take(slice(first, end)).decode(x.dtype))
        return output

    def _tiles(self) -> list[tuple[int, int]]:
        step = max(1, TILE_NUMBERS // self.matrix.columns)
        return [(first, min(first + step, self.matrix.rows)) for first in range(0, self.matrix.rows, step)]


@attrs.frozen(eq=False)
class StackedLinear:
    """Linears of one input side by side: their outputs one behind the other."""

    parts: tuple[EncodedLinear, ...]
    bias: Tensor | None = None

    @property
    def n_bytes(self) -> int:
        return sum(part.n_bytes for part in self.parts) + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        output = torch.cat([part(x) for part in self.parts], -1)
        return output if self.bias is None else output.add_(self.bias)
