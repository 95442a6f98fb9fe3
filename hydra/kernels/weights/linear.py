"""Products of hidden states with weight matrices, in the layout in which their device multiplies fastest.

On the CPU oneDNN multiplies by a matrix of its own layout: about twice as fast as the plain product at one row, three
times at a few rows, and with rows whose bits do not depend on how many others stand beside them, so that a replay
computes what the first run did. A matrix is packed once, after it was read; its plain form is not kept. Anywhere else,
and in a dtype that oneDNN has no fast path for, a matrix stays as it is. Knows no layer and no model.
"""

import torch
from torch import Tensor
from torch.nn import functional

_ROWS_HINT = 16  # the layout oneDNN chooses for a few rows is as good for one and for thousands; that for one is not
_ops = torch.ops.mkldnn


def packs(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether matrices of this kind have a packed form here."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(_ops._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def pack(matrix: Tensor) -> Tensor:
    """A [rows, columns] matrix as `linear` multiplies by it fastest: of the same size, and good for nothing else."""
    if not packs(matrix.dtype, matrix.device):
        return matrix
    packed: Tensor = _ops._reorder_linear_weight(matrix, _ROWS_HINT)
    return packed


def linear(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [n, columns] times the matrix's transpose, plus the bias: [n, rows]."""
    if not matrix.is_mkldnn:
        return functional.linear(x, matrix, bias)
    product: Tensor = _ops._linear_pointwise(x, matrix, bias, "none", [], "")
    return product
