"""Products of hidden states with weight matrices: objects that are called, each made for the form its matrix has.

On the CPU oneDNN multiplies by a matrix of its own layout, with rows whose bits do not depend on how many others stand
beside them, so that a replay computes what the first run did. On most processors that is about twice as fast as the
plain product at one row; on some it is slower. Our own product of a few rows has the same property; which of the two
a large matrix is given to is measured, once for each shape in a process. A packed matrix is packed once, after it was
read; its plain form is not kept. Anywhere else, and in a dtype that oneDNN has no fast path for, a matrix stays as it
is. A further form is a further class, and a case in `make_linear`. Knows no layer and no model.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from hydra.kernels.native.products import INPUT_ROWS_MAX, NativeMatrix, native_dense
from hydra.kernels.weights.encoded.encoded_linear import EncodedLinear
from hydra.kernels.weights.encoded.encoded_matrix import EncodedMatrix
from hydra.kernels.weights.encoded_rows import EncodedRows

NATIVE_ROWS = 2 * INPUT_ROWS_MAX  # the plain product of more rows is faster than so many of our own
MEASURED_BYTES = 1 << 20  # a smaller matrix is multiplied by in no time
GAIN = 1.05  # less is not worth the slower products of many rows
_ROUNDS = 3
_CACHE_BYTES = 32 << 20  # of a large cache: what the two forms do not fill of it is written to between two products
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
class NativeLinear:
    """The matrix as it was read, and our own product where there are few rows."""

    matrix: Tensor  # [rows, columns]
    native: NativeMatrix
    bias: Tensor | None = None

    @property
    def n_bytes(self) -> int:
        return self.matrix.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[0] > NATIVE_ROWS:
            return functional.linear(x, self.matrix, self.bias)
        firsts = range(0, max(1, x.shape[0]), INPUT_ROWS_MAX)
        products = [self.native.product(x[first : first + INPUT_ROWS_MAX]) for first in firsts]
        output = products[0] if len(products) == 1 else torch.cat(products)
        return output if self.bias is None else output.add_(self.bias)


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
    own = native_dense(matrix) if matrix.dtype == torch.float32 and matrix.nbytes >= MEASURED_BYTES else None
    if own is not None and _choices.prefers_native(matrix, own):
        return NativeLinear(matrix, own, bias)
    return PackedLinear(_packed(matrix), bias)


def make_encoded_linear(rows: EncodedRows, bias: Tensor | None = None) -> Linear:
    """Of a matrix of which something is encoded: one product for each of its pieces."""
    if len(rows.pieces) == 1:
        return _of_piece(rows.pieces[0], bias)
    return StackedLinear(tuple(_of_piece(piece, None) for piece in rows.pieces), bias)


def _of_piece(piece: EncodedMatrix | Tensor, bias: Tensor | None) -> Linear:
    return make_linear(piece, bias) if isinstance(piece, Tensor) else EncodedLinear(piece, bias)


def _packed(matrix: Tensor) -> Tensor:
    packed: Tensor = _ops._reorder_linear_weight(matrix, _ROWS_HINT)
    return packed


Product: TypeAlias = Callable[[Tensor], Tensor]


class _Choices:
    """By shape and threads, what was measured in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._native: dict[tuple[int, int, int], bool] = {}

    def prefers_native(self, matrix: Tensor, own: NativeMatrix) -> bool:
        rows, columns = matrix.shape
        kind = (rows, columns, torch.get_num_threads())
        with self._lock:
            if kind not in self._native:
                row = torch.ones(1, columns)
                products = (PackedLinear(_packed(matrix)), own.product)
                packed_s, own_s = fastest_s(products, row, max(0, _CACHE_BYTES - 2 * matrix.nbytes))
                self._native[kind] = own_s * GAIN < packed_s
            return self._native[kind]


_choices = _Choices()


def fastest_s(
    products: Sequence[Product], row: Tensor, between_bytes: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """The shortest time of each, in turn; `between_bytes` are written between two, so that caches hold no matrix."""
    times: list[list[float]] = [[] for _ in products]
    between = torch.empty(between_bytes // 4)
    for _ in range(_ROUNDS):
        for product, own_times in zip(products, times, strict=True):
            between.fill_(0.0)
            began_s = clock()
            product(row)
            own_times.append(clock() - began_s)
    return [min(own_times) for own_times in times]
