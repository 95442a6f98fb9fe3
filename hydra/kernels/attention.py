"""Attention of ragged rows over a paged cache: write the new keys and values, then look back.

The plain torch way, for every device: a row whose blocks lie side by side is read in place, any other is gathered.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor

from hydra.kernels.kv_pool import RowSpan


def attend(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, spans: list[RowSpan]) -> Tensor:
    """q [T, H, E], k and v [T, G, E] of the run's tokens; keys, values [slots, G, E] of the pool. Returns [T, H * E].

    A token sees its row's past and itself (causal); rows do not see each other.
    """
    out: list[Tensor] = []
    for span in spans:
        end = span.start + span.length
        if isinstance(span.slots, slice):
            base = span.slots.start
            keys[base + span.past : base + span.total] = k[span.start : end]
            values[base + span.past : base + span.total] = v[span.start : end]
        else:
            keys[span.slots[span.past :]] = k[span.start : end]
            values[span.slots[span.past :]] = v[span.start : end]
        out.append(_attend_row(q[span.start : end], keys[span.slots], values[span.slots], span))
    return out[0] if len(out) == 1 else torch.cat(out)


def _attend_row(q: Tensor, keys: Tensor, values: Tensor, span: RowSpan) -> Tensor:
    """[L, H, E] over [total, G, E] -> [L, H * E]."""
    mask: Tensor | None = None
    causal = span.length > 1 and span.past == 0
    if span.length > 1 and span.past > 0:
        mask = torch.ones(span.length, span.total, dtype=torch.bool, device=q.device).tril(span.past)
    mixed = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=causal,
        enable_gqa=q.shape[1] != keys.shape[1],
    )
    return mixed[0].transpose(0, 1).reshape(span.length, -1)
