"""How a file holds the numbers of a tensor, apart from the dtype that they are computed in.

A kind of encoding is a class here, a member of `Encoding`, and a case of the reader in kernels/weights that brings it
into memory. Bytes of a tensor are asked of its encoding, never reckoned from a dtype. Knows no tensor's meaning.
"""

import math
from collections.abc import Mapping
from typing import TypeAlias

import attrs

from hydra.protocol.model.dtype import DTYPE_BYTES, Dtype


@attrs.frozen
class PlainEncoding:
    """One number after the other, each in the little-endian form of a dtype."""

    dtype: Dtype

    def n_bytes(self, shape: tuple[int, ...]) -> int:
        """Of a tensor of this shape."""
        return math.prod(shape) * DTYPE_BYTES[self.dtype]


Encoding: TypeAlias = PlainEncoding

F32, BF16, F16 = PlainEncoding("float32"), PlainEncoding("bfloat16"), PlainEncoding("float16")
ENCODINGS: Mapping[str, Encoding] = {"F32": F32, "BF16": BF16, "F16": F16}  # by the names that safetensors has for them
ENCODING_NAMES: Mapping[Encoding, str] = {encoding: name for name, encoding in ENCODINGS.items()}
