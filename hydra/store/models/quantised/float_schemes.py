"""Small floats: float8 with scales by tensor, row or tile, and the 4-bit floats MXFP4 and NVFP4."""

import attrs

from hydra.protocol.model.encoding import GroupEncoding, TensorShape
from hydra.store.models.quantised.scheme import FLOATS, MatrixLayout, StoredMatrix, StoredSide, n_groups


@attrs.frozen
class Float8:
    """A float8 for each number; the name of the scales' tensor depends on the publisher. Both are multipliers."""

    encoding: GroupEncoding
    scale: str  # the suffix of the scales
    fused: bool = False  # tensors that hold all experts have no ".weight" in their names

    @property
    def values(self) -> str:
        return "" if self.fused else ".weight"

    def layout(self, matrix: StoredMatrix) -> MatrixLayout:
        encoding = self.encoding
        rows, columns = matrix.rows, matrix.columns
        down, across = n_groups(rows, encoding.group_rows), n_groups(columns, encoding.group_columns)
        shapes: list[TensorShape] = [(down, across)]
        if across == 1 and not encoding.group_columns:
            shapes.append((down,))
        if down == across == 1 and not encoding.group_rows:
            shapes.append(())
        values = matrix.need(self.values, ("F8_E4M3",), (rows, columns))
        scale = matrix.side("scale", self.scale, (*FLOATS, "F8_E8M0"), *shapes)
        return MatrixLayout(encoding=encoding, values=values, sides=(scale,))


@attrs.frozen
class Mxfp4Blocks:
    """gpt-oss's experts, all in one tensor: blocks of 32 columns in 16 bytes, and an exponent for each block."""

    encoding: GroupEncoding
    values = "_blocks"

    def layout(self, matrix: StoredMatrix) -> MatrixLayout:
        width = self.encoding.group_columns
        _check_whole_groups(matrix, width)
        blocks = (matrix.rows, matrix.columns // width)
        values = matrix.need(self.values, ("U8",), (*blocks, width // 2))
        scale = matrix.side("scale", "_scales", ("U8", "F8_E8M0"), blocks)
        return MatrixLayout(encoding=self.encoding, values=values, sides=(scale,))


@attrs.frozen
class PackedFloat4:
    """compressed-tensors' mxfp4-pack-quantized, and nvfp4-pack-quantized with a divisor for the whole matrix."""

    encoding: GroupEncoding
    values = ".weight_packed"

    def layout(self, matrix: StoredMatrix) -> MatrixLayout:
        encoding = self.encoding
        _check_whole_groups(matrix, encoding.group_columns)
        rows, columns = matrix.rows, matrix.columns
        values = matrix.need(self.values, ("U8",), (rows, columns // 2))
        dtypes = ("F8_E4M3",) if encoding.scheme == "nvfp4" else ("U8", "F8_E8M0")
        sides: list[StoredSide] = [
            matrix.side("scale", ".weight_scale", dtypes, (rows, columns // encoding.group_columns))
        ]
        if encoding.scheme == "nvfp4":
            sides.append(matrix.side("second_scale", ".weight_global_scale", ("F32",), (1,), ()))
        return MatrixLayout(encoding=encoding, values=values, sides=tuple(sides))


def _check_whole_groups(matrix: StoredMatrix, width: int) -> None:
    if matrix.columns % width:
        raise matrix.unsupported(f"whose columns are no whole groups of {width}")
