"""Products with an encoded matrix, and its rows looked up.

A few rows of input are multiplied by what the device is fastest with; many rows by tiles that are decoded one after the
other, so that no more than one tile is ever held in full. Knows no layer and no model.
"""

from collections.abc import Iterator

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from hydra.kernels.native.products import INPUT_ROWS_MAX, NativeMatrix
from hydra.kernels.weights.encoded.cuda.device_product import ROWS_MAX, DeviceProduct, device_product
from hydra.kernels.weights.encoded.encoded_matrix import EncodedMatrix
from hydra.kernels.weights.encoded.native_form import native_form, order_of

TILE_NUMBERS = 1 << 20  # decoded at once: 4 MB in float32, which is still in a cache when it is multiplied
DEVICE_TILE_NUMBERS = 16 << 20  # the same where a kernel decodes: 32 MB in 16 bits
_NATIVE_INPUT = (torch.float32, torch.bfloat16, torch.float16)


@attrs.frozen(eq=False)
class EncodedLinear:
    """x [n, columns] times the transpose of an encoded matrix, plus the bias where there is one: [n, rows]."""

    matrix: EncodedMatrix
    bias: Tensor | None = None
    _product: DeviceProduct | None = attrs.field(init=False)
    native: NativeMatrix | None = attrs.field(init=False)

    @_product.default
    def _of_the_device(self) -> DeviceProduct | None:
        return device_product(self.matrix)

    @native.default
    def _of_the_processor(self) -> NativeMatrix | None:
        return native_form(self.matrix)

    @property
    def n_bytes(self) -> int:
        return self.matrix.n_bytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        if self._product is not None:
            output = self._on_the_device(self._product, x)
        elif self.native is not None and x.dtype in _NATIVE_INPUT:
            output = self._natively(self.native, x)
        else:
            output = x.new_empty(x.shape[0], self.matrix.rows)
            for first, end in self._tiles(TILE_NUMBERS):
                output[:, first:end] = functional.linear(x, self.matrix.take(slice(first, end)).decode(x.dtype))
        return output if self.bias is None else output.add_(self.bias)

    def look_up(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows of these indices (int64), in their order: [n, columns]."""
        if self.native is None or order_of(self.matrix) is not None:
            return self.matrix.take(rows).decode(dtype)
        return self.native.decode_rows(rows).to(dtype)

    def _on_the_device(self, product: DeviceProduct, x: Tensor) -> Tensor:
        if 0 < x.shape[0] <= ROWS_MAX:
            return product(x)
        output = x.new_empty(x.shape[0], self.matrix.rows)
        for first, end in self._tiles(DEVICE_TILE_NUMBERS):
            output[:, first:end] = functional.linear(x, product.decode(first, end, x.dtype))
        return output

    def _natively(self, native: NativeMatrix, x: Tensor) -> Tensor:
        """Few rows by the codes themselves; many by tiles that are decoded on the way."""
        order = order_of(self.matrix)
        if order is not None:
            x = x.index_select(1, order)
        if x.shape[0] <= INPUT_ROWS_MAX:
            return native.product(x.to(torch.float32)).to(x.dtype)
        output = x.new_empty(x.shape[0], self.matrix.rows)
        for first, end in self._tiles(TILE_NUMBERS):
            output[:, first:end] = functional.linear(x, native.decode(first, end).to(x.dtype))
        return output

    def _tiles(self, numbers: int) -> Iterator[tuple[int, int]]:
        """First row and end of pieces of about so many numbers."""
        step = max(1, numbers // self.matrix.columns)
        step = step // 64 * 64 or step  # products of odd numbers of rows are slower
        for first in range(0, self.matrix.rows, step):
            yield first, min(first + step, self.matrix.rows)
