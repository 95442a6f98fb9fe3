"""What a part of a model comes to: in files, and in memory once it is brought into a route's dtype.

The only place that knows how much memory weights take. Counted from the tensors, each by its own encoding.
"""

from collections.abc import Iterable

import attrs

from hydra.protocol.model.dtype import DTYPE_BYTES, Dtype
from hydra.protocol.model.encoding import Encoding


@attrs.frozen
class PartSize:
    """Of a layer, an end, or several of them."""

    numbers: int  # brought into the dtype that a route computes in
    stored_bytes: int  # as files hold them: what is read, sent and fetched

    def memory_bytes(self, dtype: Dtype) -> int:
        return self.numbers * DTYPE_BYTES[dtype]


def stored_size(numbers: int, encoding: Encoding) -> PartSize:
    """Of so many numbers that are stored in one way."""
    return PartSize(numbers, encoding.n_bytes((numbers,)))


def total_size(sizes: Iterable[PartSize]) -> PartSize:
    numbers = stored_bytes = 0
    for size in sizes:
        numbers, stored_bytes = numbers + size.numbers, stored_bytes + size.stored_bytes
    return PartSize(numbers, stored_bytes)
