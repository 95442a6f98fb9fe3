"""Products of hidden states with weight matrices: objects that are called, each made for the form its matrix has.

On the CPU oneDNN multiplies by a matrix of its own layout: about twice as fast as the plain product at one row, three
times at a few rows, and with rows whose bits do not depend on how many others stand beside them, so that a replay
computes what the first run did. A matrix is packed once, after it was read; its plain form is not kept. Anywhere else,
and in a dtype that oneDNN has no fast path for, a matrix stays as it is. A further form is a further class, and a case
in `make_linear`. Knows no layer and no model.
"""

from typing import Protocol

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from hydra.kernels.weights.encoded.encoded_linear import EncodedLinear
from hydra.kernels.weights.encoded.encoded_matrix import EncodedMatrix
from hydra.kernels.weights.encoded_rows import EncodedRows

_ROWS_HINT = 16  # the layout oneDNN chooses for a few rows is as good for one and for thousands; that for one is not
_ops = torch.ops.mkldnn


class Linear(Protocol):
    """x [n, columns] times a matrix's transpose, plus the bias where there is one: [n, rows]."""

    @property
    def n_bytes(self) -> int: ...

    def __call__(self, x: Tensor) -> Tensor: ...


@attrs.frozen(eq=False)
class PlainLinear:
    """The matrix as it was read."""

    matrix: Tensor  # [rows, columns]
    bias: Tensor | None = None

    @property
    def n_bytes(self) -> int:
        return self.matrix.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.matrix, self.bias)


@attrs.frozen(eq=False)
class PackedLinear:
    """The matrix in oneDNN's layout: of the same size, and good for nothing else."""

    matrix: Tensor
    bias: Tensor | None = None

    @property
    def n_bytes(self) -> int:
        return self.matrix.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = _ops._linear_pointwise(x, self.matrix, self.bias, "none", [], "")
        return product


@attrs.frozen(eq=False)
class StackedLinear:
    """Linears of one input: their outputs one behind the other."""

    parts: tuple[Linear, ...]
    bias: Tensor | None = None

    @property
    def n_bytes(self) -> int:
        return sum(part.n_bytes for part in self.parts) + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        output = torch.cat([part(x) for part in self.parts], -1)
        return output if self.bias is None else output.add_(self.bias)


def packs_linears(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether matrices of this kind have a packed form here."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(_ops._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def make_linear(matrix: Tensor, bias: Tensor | None = None) -> Linear:
    """In the form that its device multiplies by fastest; the matrix itself is then no longer needed."""
    if not packs_linears(matrix.dtype, matrix.device):
        return PlainLinear(matrix, bias)
    return PackedLinear(_ops._reorder_linear_weight(matrix, _ROWS_HINT), bias)


def make_encoded_linear(rows: EncodedRows, bias: Tensor | None = None) -> Linear:
    """Of a matrix of which something is encoded: one product for each of its pieces."""
    if len(rows.pieces) == 1:
        return _of_piece(rows.pieces[0], bias)
    return StackedLinear(tuple(_of_piece(piece, None) for piece in rows.pieces), bias)


def _of_piece(piece: EncodedMatrix | Tensor, bias: Tensor | None) -> Linear:
    return make_linear(piece, bias) if isinstance(piece, Tensor) else EncodedLinear(piece, bias)
