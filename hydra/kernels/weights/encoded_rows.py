"""A matrix as it was read, where not all of it is plain. Knows no file and no product."""

from collections.abc import Sequence
from itertools import groupby

import attrs
from torch import Tensor

from hydra.kernels.weights.encoded.encoded_matrix import EncodedMatrix
from hydra.kernels.weights.encoded.stacked_rows import stack_rows


@attrs.frozen(eq=False)
class EncodedRows:
    """The rows of one matrix in pieces, from top to bottom: each encoded, or plain in the route's dtype."""

    pieces: tuple[EncodedMatrix | Tensor, ...]

    @staticmethod
    def of(published: Sequence[EncodedMatrix | Tensor]) -> "EncodedRows":
        """Pieces that lie one below the other and are alike become one."""
        pieces: list[EncodedMatrix | Tensor] = []
        for is_plain, run in groupby(published, key=lambda piece: isinstance(piece, Tensor)):
            if is_plain:
                pieces += run
            else:
                pieces += stack_rows([piece for piece in run if not isinstance(piece, Tensor)])
        return EncodedRows(tuple(pieces))


@attrs.frozen(eq=False)
class EncodedExperts:
    """One matrix for each expert."""

    experts: tuple[EncodedRows, ...]
