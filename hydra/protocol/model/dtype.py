"""The dtypes that a route computes in, and in which its hidden states travel. Knows nothing of what files hold."""

from typing import Literal

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
