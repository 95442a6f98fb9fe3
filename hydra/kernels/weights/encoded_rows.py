"""A matrix as it was read, where not all of it is plain. Knows no file and no product."""

import attrs
from torch import Tensor

from hydra.kernels.weights.encoded.encoded_matrix import EncodedMatrix


@attrs.frozen(eq=False)
class EncodedRows:
    """The rows of one matrix in pieces, from top to bottom: each encoded, or plain in the route's dtype."""

    pieces: tuple[EncodedMatrix | Tensor, ...]


@attrs.frozen(eq=False)
class EncodedExperts:
    """One matrix for each expert."""

    experts: tuple[EncodedRows, ...]
