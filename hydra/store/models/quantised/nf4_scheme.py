"""bitsandbytes' nf4: codes of a table in blocks of the flat matrix, whose scales may be codes themselves.

How many numbers a block has is told by how many scales there are. The quant_state, a JSON object, says it again and has
the offset of nested scales: it goes along as a side, for whoever decodes.
"""

import attrs

from hydra.protocol.model.encoding import GroupEncoding
from hydra.store.models.quantised.scheme import FLOATS, MatrixLayout, StoredMatrix, StoredSide
from hydra.store.models.stored_tensors import Located

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
NESTED_BLOCK = 256
STATE_MAX_BYTES = 4096  # it has about 200
STATE = ".weight.quant_state.bitsandbytes__nf4"


@attrs.frozen
class Nf4:
    """`nested`: the scales are codes of a second scale."""

    nested: bool
    values = ".weight"

    def layout(self, matrix: StoredMatrix) -> MatrixLayout:
        values = self._values(matrix)
        block, n_blocks = self._blocks(matrix)
        encoding = GroupEncoding("nf4", 4, 1, block, nested=self.nested)
        sides = [
            matrix.side("scale", ".weight.absmax", ("U8",) if self.nested else ("F32",), (n_blocks,)),
            matrix.side("table", ".weight.quant_map", ("F32",), (16,)),
            self._state(matrix),
        ]
        if self.nested:
            n_second = -(-n_blocks // NESTED_BLOCK)
            sides += [
                matrix.side("second_scale", ".weight.nested_absmax", ("F32",), (n_second,)),
                matrix.side("second_table", ".weight.nested_quant_map", ("F32",), (256,)),
            ]
        return MatrixLayout(encoding=encoding, values=values, sides=tuple(sides))

    def _values(self, matrix: StoredMatrix) -> Located:
        """Flat bytes, in whatever dtype they were kept (bnb_4bit_quant_storage)."""
        located = matrix.find(self.values)
        if located is None:
            raise matrix.lacks(self.values)
        stored = located[1]
        if stored.file_dtype not in ("U8", "I8", *FLOATS):
            raise matrix.unfit(located, f"is stored as {stored.file_dtype}")
        if stored.length * 2 != matrix.rows * matrix.columns:
            raise matrix.unfit(located, f"has {stored.length} bytes of 4-bit numbers")
        return located

    def _blocks(self, matrix: StoredMatrix) -> tuple[int, int]:
        """(numbers in a block, blocks)."""
        located = matrix.find(".weight.absmax")
        if located is None:
            raise matrix.lacks(".weight.absmax")
        numbers = matrix.rows * matrix.columns
        n_blocks = located[1].shape[0] if len(located[1].shape) == 1 else 0
        block = next((size for size in BLOCK_SIZES if n_blocks and -(-numbers // size) == n_blocks), None)
        if block is None:
            raise matrix.unfit(located, f"has shape {located[1].shape}, which fits no size of blocks")
        if matrix.columns % block:
            raise matrix.unsupported(f"whose rows are no whole blocks of {block}")
        return block, n_blocks

    def _state(self, matrix: StoredMatrix) -> StoredSide:
        located = matrix.find(STATE)
        if located is None:
            raise matrix.lacks(STATE)
        n_bytes = located[1].length
        if not 2 <= n_bytes <= STATE_MAX_BYTES:
            raise matrix.unfit(located, f"has {n_bytes} bytes, where a short JSON object is kept")
        return matrix.side("second_offset", STATE, ("U8",), (n_bytes,))
