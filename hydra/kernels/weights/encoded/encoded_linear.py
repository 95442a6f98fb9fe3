"""Products with an encoded matrix.

A few rows of input are multiplied by what the device is fastest with; many rows by tiles that are decoded one after the
other, so that no more than one tile is ever held in full. Knows no layer and no model.
"""

import attrs
from torch import Tensor
from torch.nn import functional

from hydra.kernels.weights.encoded.cuda.device_product import ROWS_MAX, DeviceProduct, device_product
from hydra.kernels.weights.encoded.encoded_matrix import EncodedMatrix

TILE_NUMBERS = 4 << 20  # decoded at once: 16 MB in float32
DEVICE_TILE_NUMBERS = 16 << 20  # the same where a kernel decodes: 32 MB in 16 bits


@attrs.frozen(eq=False)
class EncodedLinear:
    """x [n, columns] times the transpose of an encoded matrix, plus the bias where there is one: [n, rows]."""

    matrix: EncodedMatrix
    bias: Tensor | None = None
    _product: DeviceProduct | None = attrs.field(init=False)

    @_product.default
    def _of_the_device(self) -> DeviceProduct | None:
        return device_product(self.matrix)

    @property
    def n_bytes(self) -> int:
        return self.matrix.n_bytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        if self._product is not None and 0 < x.shape[0] <= ROWS_MAX:
            output = self._product(x)
        else:
            output = self._tile_by_tile(x)
        return output if self.bias is None else output.add_(self.bias)

    def _tile_by_tile(self, x: Tensor) -> Tensor:
        rows, product = self.matrix.rows, self._product
        step = max(1, (TILE_NUMBERS if product is None else DEVICE_TILE_NUMBERS) // self.matrix.columns)
        output = x.new_empty(x.shape[0], rows)
        for first in range(0, rows, step):
            end = min(first + step, rows)
            if product is None:
                tile = self.matrix.take(slice(first, end)).decode(x.dtype)
            else:
                tile = product.decode(first, end, x.dtype)
            output[:, first:end] = functional.linear(x, tile)
        return output
