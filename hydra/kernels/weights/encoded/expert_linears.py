"""The linears of a layer's experts as slices of one matrix, where the device multiplies by all of them at once.

Then no number of an expert's rows has to be known on the host. Knows no router and no layer.
"""

from collections.abc import Iterator

import attrs
from torch import Tensor

from hydra.kernels.weights.encoded.cuda.device_product import DeviceProduct, device_product
from hydra.kernels.weights.encoded.encoded_linear import EncodedLinear
from hydra.kernels.weights.encoded.encoded_matrix import EncodedMatrix, Float8Matrix


@attrs.frozen(eq=False)
class ExpertLinears:
    """Of one kind, by expert: each alone, or all for rows that are sorted by expert."""

    linears: tuple[EncodedLinear, ...]
    product: DeviceProduct
    biases: Tensor | None = None  # [experts, rows]

    def __getitem__(self, expert: int) -> EncodedLinear:
        return self.linears[expert]

    def __len__(self) -> int:
        return len(self.linears)

    def __iter__(self) -> Iterator[EncodedLinear]:
        return iter(self.linears)

    def by_expert(self, x: Tensor, experts: Tensor, origin: Tensor | None = None) -> Tensor:
        """As DeviceProduct.by_expert, with the bias of each row's expert."""
        output = self.product.by_expert(x, experts, origin)
        return output if self.biases is None else output.add_(self.biases.index_select(0, experts))


def expert_linears(matrix: EncodedMatrix, n_experts: int, biases: Tensor | None = None) -> ExpertLinears | None:
    """The matrix holds the experts one below the other. None where the device has no product with all of them."""
    product = device_product(matrix, n_experts)
    if product is None:
        return None
    rows = matrix.rows // n_experts
    each = (_slice(matrix, expert * rows, (expert + 1) * rows) for expert in range(n_experts))
    linears = (EncodedLinear(one, None if biases is None else biases[at]) for at, one in enumerate(each))
    return ExpertLinears(tuple(linears), product, biases)


def _slice(matrix: EncodedMatrix, first: int, end: int) -> EncodedMatrix:
    """Without a copy: of a float8 matrix too, where the rows are whole tiles."""
    if isinstance(matrix, Float8Matrix) and first % matrix.group_rows == 0:
        tiles = matrix.scales[first // matrix.group_rows : -(-end // matrix.group_rows)]
        return attrs.evolve(matrix, codes=matrix.codes[first:end], scales=tiles)
    return matrix.take(slice(first, end))
