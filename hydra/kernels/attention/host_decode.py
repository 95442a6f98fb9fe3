"""One new token per row attends to its row's past on the CPU: all rows in one call of the compiled attention, which
reads keys and values where their KV blocks lie. Knows slots and positions, no model and no pool.
"""

import attrs
import torch
from torch import Tensor

from hydra.kernels.attention.paged_rows import PagedRows
from hydra.kernels.native.library import AttentionStruct, NativeLibrary


@attrs.frozen(eq=False)
class HostDecode:
    """A layer's way to mix: `scale` multiplies the scores, `softcap` (0: none) bends them below its size; `sinks` are
    one more score for each head, which has no value.
    """

    library: NativeLibrary
    scale: float
    softcap: float
    sinks: Tensor | None  # float32 [heads]

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, rows: PagedRows) -> Tensor:
        """float32: query [n, heads, d]; keys and values [slots, kv heads, d], contiguous; returns [n, heads * d]."""
        n, heads, width = query.shape
        if query.stride(2) != 1 or query.stride(1) != width:
            query = query.contiguous()
        assert query.dtype == keys.dtype == torch.float32 and rows.table.stride(1) == 1
        output = torch.empty(n, heads * width)
        struct = AttentionStruct(
            query.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            rows.table.data_ptr(),
            rows.first.data_ptr(),
            rows.reach.data_ptr(),
            None if self.sinks is None else self.sinks.data_ptr(),
            output.data_ptr(),
            n,
            heads,
            keys.shape[1],
            width,
            query.stride(0),
            rows.table.stride(0),
            rows.block_size,
            self.scale,
            self.softcap,
        )
        self.library.attend(struct, torch.get_num_threads())
        return output
