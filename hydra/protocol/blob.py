"""A tensor in transit: dtype, shape and bytes. No torch here, and no copy of what is large."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import attrs

BlobDtype = Literal["float32", "bfloat16", "float16", "int32"]
BLOB_ITEM_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int32": 4}
BLOB_DTYPES: tuple[BlobDtype, ...] = ("float32", "bfloat16", "float16", "int32")
BLOB_BYTES_MAX = 1 << 30  # one micro-batch of hidden states; far above any real one, far below harm

Buffer: TypeAlias = bytes | bytearray | memoryview
Frames: TypeAlias = Sequence[Buffer]  # of one message, as a wire takes and gives them


@attrs.define  # made for every step of every stage, where a frozen class costs three times as much
class Blob:
    """`data` holds exactly prod(shape) items of `dtype`, C order, little endian.

    Raises ValueError when the byte count does not match; nothing is allocated before that check.
    """

    dtype: BlobDtype
    shape: tuple[int, ...]
    data: Buffer = attrs.field(eq=bytes, repr=lambda data: f"<{len(data)} bytes>")

    def __attrs_post_init__(self) -> None:
        n_bytes = BLOB_ITEM_BYTES.get(self.dtype)
        if n_bytes is None or len(self.shape) > 4:
            raise ValueError(f"no blob has dtype {self.dtype!r} and rank {len(self.shape)}")
        for size in self.shape:
            if not 0 <= size <= BLOB_BYTES_MAX:
                raise ValueError(f"a blob side of {size} is out of range")
            n_bytes *= size
        given = len(self.data) if isinstance(self.data, bytes) else memoryview(self.data).nbytes
        if n_bytes != given or n_bytes > BLOB_BYTES_MAX:
            raise ValueError(f"{self.dtype}{self.shape} needs {n_bytes} bytes, got {given}")
