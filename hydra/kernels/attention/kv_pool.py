"""The KV memory of one route on one device: blocks of keys and values per layer.

Promises shape and that nothing is touched before it is written, so an unused block costs no memory on the CPU. Does
not know which row owns which block (the Broker's ledger does); a block that comes back is simply written over.
"""

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from hydra.protocol.model.cache_spec import CacheSpec


@attrs.frozen(eq=False)
class LayerCache:
    """One layer's keys and values, [n_blocks, block_size, n_kv_heads, head_dim], and the same memory seen otherwise."""

    keys: Tensor
    values: Tensor
    key_slots: Tensor  # [n_blocks * block_size, n_kv_heads, head_dim]
    value_slots: Tensor
    key_heads: Tensor  # [1, n_kv_heads, n_blocks * block_size, head_dim]: a row of SDPA is one narrow view of it
    value_heads: Tensor


class KvPool:
    """`layers[i]` is the cache of the slice's i-th layer."""

    def __init__(
        self, caches: Sequence[CacheSpec], n_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.n_blocks = n_blocks
        self.block_size = block_size
        self.layers = tuple(
            _layer((n_blocks, block_size, cache.n_heads, cache.head_dim), dtype, device) for cache in caches
        )

    @property
    def n_bytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)


def _layer(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> LayerCache:
    keys = torch.empty(shape, dtype=dtype, device=device)
    values = torch.empty(shape, dtype=dtype, device=device)
    key_slots, value_slots = keys.flatten(0, 1), values.flatten(0, 1)
    return LayerCache(keys, values, key_slots, value_slots, _by_head(key_slots), _by_head(value_slots))


def _by_head(slots: Tensor) -> Tensor:
    return slots.transpose(0, 1).unsqueeze(0)
