"""What a part of a model comes to: in files, and in memory once it is brought into a route's dtype.

The only place that knows how much memory weights take. Counted from the tensors, each by its own encoding.
"""

import math
from collections.abc import Iterable

import attrs

from hydra.protocol.model.dtype import DTYPE_BYTES, Dtype
from hydra.protocol.model.encoding import Encoding


@attrs.frozen
class PartSize:
    """Of a layer, an end, or several of them."""

    numbers: int  # brought into the dtype that a route computes in
    stored_bytes: int  # as files hold them: what is read, sent and fetched
    kept_bytes: int = 0  # of memory, of what is computed with as it is stored, in whatever dtype

    def memory_bytes(self, dtype: Dtype) -> int:
        return self.numbers * DTYPE_BYTES[dtype] + self.kept_bytes


def tensor_size(encoding: Encoding, shape: tuple[int, ...]) -> PartSize:
    """Of one tensor. Raises ValueError for a shape that the encoding cannot store."""
    kept_bytes, stored_bytes = encoding.kept_bytes(shape), encoding.n_bytes(shape)
    if kept_bytes is None:
        return PartSize(math.prod(shape), stored_bytes)
    return PartSize(0, stored_bytes, kept_bytes)


def side_size(encoding: Encoding, shape: tuple[int, ...]) -> PartSize:
    """Of what stands beside a matrix's values: its memory is counted with them."""
    return PartSize(0, encoding.n_bytes(shape))


def stored_size(numbers: int, encoding: Encoding) -> PartSize:
    """Of so many numbers that are stored in one way."""
    return tensor_size(encoding, (numbers,))


def total_size(sizes: Iterable[PartSize]) -> PartSize:
    numbers = stored_bytes = kept_bytes = 0
    for size in sizes:
        numbers, stored_bytes = numbers + size.numbers, stored_bytes + size.stored_bytes
        kept_bytes += size.kept_bytes
    return PartSize(numbers, stored_bytes, kept_bytes)
