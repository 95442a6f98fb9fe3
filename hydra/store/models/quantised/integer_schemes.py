"""Integers with a scale for each group: as compressed-tensors packs them, as GPTQ and AutoRound do, as AWQ does, and
one byte for each number.
"""

import attrs

from hydra.protocol.model.encoding import GroupEncoding, TensorShape
from hydra.store.models.quantised.scheme import FLOATS, MatrixLayout, StoredMatrix, n_groups

WORD_BITS = 32


@attrs.frozen
class Packed:
    """compressed-tensors' pack-quantized: words of 32 bits along the columns; the zeros along the rows."""

    encoding: GroupEncoding
    values = ".weight_packed"

    def layout(self, matrix: StoredMatrix) -> MatrixLayout:
        encoding = self.encoding
        rows, columns, bits = matrix.rows, matrix.columns, encoding.bits
        groups = n_groups(columns, encoding.group_columns)
        values = matrix.need(self.values, ("I32",), (rows, -(-columns * bits // WORD_BITS)))
        sides = [matrix.side("scale", ".weight_scale", FLOATS, (rows, groups))]
        if encoding.zero == "stored":
            packed = (-(-rows * bits // WORD_BITS), groups)
            sides.append(matrix.side("zero", ".weight_zero_point", ("I32",), packed))
        if encoding.ordered:
            sides.append(matrix.side("order", ".weight_g_idx", ("I32",), (columns,)))
        if matrix.find(".weight_shape") is not None:
            sides.append(matrix.side("shape", ".weight_shape", ("I64", "I32"), (2,)))
        return MatrixLayout(encoding=encoding, values=values, sides=tuple(sides))


@attrs.frozen
class Gptq:
    """GPTQ's: words along the columns, which are its first dimension; scales and zeros by group, then by row."""

    encoding: GroupEncoding
    values = ".qweight"

    def layout(self, matrix: StoredMatrix) -> MatrixLayout:
        encoding = self.encoding
        rows, columns, bits = matrix.rows, matrix.columns, encoding.bits
        groups = n_groups(columns, encoding.group_columns)
        _check_whole_words(matrix, columns * bits, "columns")
        _check_whole_words(matrix, rows * bits, "rows")
        values = matrix.need(self.values, ("I32",), (columns * bits // WORD_BITS, rows))
        sides = [
            matrix.side("scale", ".scales", FLOATS, (groups, rows)),
            matrix.side("zero", ".qzeros", ("I32",), (groups, rows * bits // WORD_BITS)),
        ]
        if groups > 1 and (encoding.ordered or matrix.find(".g_idx") is not None):
            # also without desc_act: it says then that column i is of group i // g, and where it says something else
            # nobody may compute as if it did not
            sides.append(matrix.side("order", ".g_idx", ("I32",), (columns,)))
        return MatrixLayout(
            encoding=encoding, values=values, sides=tuple(sides), ignored=(".g_idx",) if groups == 1 else ()
        )


@attrs.frozen
class Awq:
    """AutoAWQ's "gemm": words along the rows, which are its second dimension."""

    encoding: GroupEncoding
    values = ".qweight"

    def layout(self, matrix: StoredMatrix) -> MatrixLayout:
        encoding = self.encoding
        rows, columns, bits = matrix.rows, matrix.columns, encoding.bits
        groups = n_groups(columns, encoding.group_columns)
        _check_whole_words(matrix, rows * bits, "rows")
        words = rows * bits // WORD_BITS
        values = matrix.need(self.values, ("I32",), (columns, words))
        sides = (
            matrix.side("scale", ".scales", FLOATS, (groups, rows)),
            matrix.side("zero", ".qzeros", ("I32",), (groups, words)),
        )
        return MatrixLayout(encoding=encoding, values=values, sides=sides)


@attrs.frozen
class Int8:
    """compressed-tensors' int-quantized: a byte for each number, also for those of fewer bits."""

    encoding: GroupEncoding
    values = ".weight"

    def layout(self, matrix: StoredMatrix) -> MatrixLayout:
        encoding, rows, columns = self.encoding, matrix.rows, matrix.columns
        groups = n_groups(columns, encoding.group_columns)
        by_row = ((rows, groups), *(((rows,),) if groups == 1 else ()))
        shapes: tuple[TensorShape, ...] = by_row if encoding.group_rows else ((1,), (), (1, 1))
        values = matrix.need(self.values, ("I8",), (rows, columns))
        sides = [matrix.side("scale", ".weight_scale", FLOATS, *shapes)]
        if encoding.zero == "stored":
            sides.append(matrix.side("zero", ".weight_zero_point", ("I8",), *shapes))
        return MatrixLayout(encoding=encoding, values=values, sides=tuple(sides))


def _check_whole_words(matrix: StoredMatrix, n_bits: int, what: str) -> None:
    if n_bits % WORD_BITS:
        raise matrix.unsupported(f"whose {what} fill no whole words of {WORD_BITS} bits")
