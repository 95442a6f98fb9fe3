"""An encoded matrix as the compiled products have it, where they have a way for its form. Knows no product."""

from torch import Tensor

from hydra.kernels.native.products import NativeMatrix, native_blocks, native_float8, native_groups
from hydra.kernels.weights.encoded.encoded_matrix import BlockMatrix, EncodedMatrix, Float8Matrix, GroupedMatrix


def native_form(matrix: EncodedMatrix) -> NativeMatrix | None:
    """Of its codes as they lie: a matrix with an order of columns is multiplied by input in that order."""
    match matrix:
        case GroupedMatrix():
            return native_groups(
                matrix.codes,
                matrix.scales,
                bits=matrix.bits,
                group_columns=matrix.group_columns,
                zeros=matrix.zeros,
                minima=matrix.minima,
                table=matrix.table,
            )
        case BlockMatrix():
            return native_blocks(matrix.encoding.name, matrix.data, matrix.columns)
        case Float8Matrix():
            return native_float8(
                matrix.codes, matrix.scales, group_rows=matrix.group_rows, group_columns=matrix.group_columns
            )
    return None


def order_of(matrix: EncodedMatrix) -> Tensor | None:
    """The column of the input that belongs to each column of the codes, where it is not the same."""
    return matrix.order if isinstance(matrix, GroupedMatrix) else None
