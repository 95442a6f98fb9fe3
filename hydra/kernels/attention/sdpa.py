"""How queries mix the values of one row's past: by torch's attention, by spelled-out scores where it cannot.

On a CUDA device only those of torch's kernels are used that neither plan anew for a length nor spell all scores out.
cuDNN's plans an execution for every length of the past: tens of milliseconds, which a growing row would pay at every
token. The math fallback spells out every score of every head. What is left is flash (half precision, compute capability
8.0 and up, no mask but a causal one) and the memory-efficient kernel (any, but every head needs a key head of its own).
Knows tensors and masks, no rows and no pool.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

# query [1, heads, n, d], keys and values [1, kv heads, reach, d], mask, whether the queries are several tokens; one
# token's heads that share a key may stand side by side: [1, kv heads, heads per key, d]
Mix: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]

SCORES_MAX = 1 << 22  # spelled-out scores held at once, over all heads; a long prompt is taken in pieces
_FLASH_HEAD_MAX = 256  # channels

_sdpa = functional.scaled_dot_product_attention
_flash_on_host = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def make_sdpa(
    scale: float | None, softcap: float | None, sinks: Tensor | None, dtype: torch.dtype, device: torch.device
) -> Mix:
    """`scale` multiplies the scores (None: 1 / sqrt(d)); `softcap` bends them below its size; `sinks` (float32 [heads])
    are one more score for each head, which has no value. With either of the last two every mask must be spelled out.
    """
    if sinks is not None and softcap is None and device.type == "cpu":
        return _host_mix_with_sinks(scale, sinks)
    if softcap is not None or sinks is not None:
        return _spelled_mix(scale, softcap, sinks)
    return _cuda_mix(scale, device, dtype) if device.type == "cuda" else _host_mix(scale)


def after_the_past(length: int, reach: int) -> Tensor:
    """The causal mask of the last `length` of `reach` positions, in the form for which CUDA kernels need no memory."""
    from torch.nn.attention.bias import causal_lower_right  # brings torch's compiler: a second, and 70 MB

    return causal_lower_right(length, reach)


def _host_mix(scale: float | None) -> Mix:
    def mix(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, several: bool) -> Tensor:
        if not several:
            return _sdpa(query, key, value, scale=scale)
        return _sdpa(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True)

    return mix


def _host_mix_with_sinks(scale: float | None, sinks: Tensor) -> Mix:
    """A sink takes its share of a softmax that was computed without it: 1 - sigmoid(log-sum-exp of the rest - sink)."""

    def mix(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, several: bool) -> Tensor:
        n_heads = query.shape[1]
        if several:
            key, value = _per_head(key, n_heads), _per_head(value, n_heads)
        mixed, log_sum = _flash_on_host(query, key, value, attn_mask=mask, scale=scale)
        kept = torch.sigmoid(log_sum - sinks.view(1, n_heads, -1))  # by heads, or by heads that share a key
        answer: Tensor = mixed.mul_(kept.unsqueeze(-1).to(mixed.dtype))
        return answer

    return mix


def _cuda_mix(scale: float | None, device: torch.device, dtype: torch.dtype) -> Mix:
    """Switches cuDNN's attention off for this process."""
    from torch.nn.attention.bias import CausalBias  # as above: only where there is such a device

    torch.backends.cuda.enable_cudnn_sdp(False)
    flash = dtype in (torch.bfloat16, torch.float16) and torch.cuda.get_device_capability(device) >= (8, 0)

    def mix(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, several: bool) -> Tensor:
        if not several:
            return _sdpa(query, key, value, scale=scale)
        causal = mask is None or isinstance(mask, CausalBias)
        if not (flash and causal and query.shape[-1] <= _FLASH_HEAD_MAX):
            key, value = _per_head(key, query.shape[1]), _per_head(value, query.shape[1])
        grouped = key.shape[1] < query.shape[1]
        return _sdpa(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped)

    return mix


def _per_head(shared: Tensor, n_heads: int) -> Tensor:
    """Keys or values for every head its own, [1, heads, reach, d]; copied unless they are as many already."""
    if shared.shape[1] == n_heads:
        return shared
    return shared.unsqueeze(2).expand(-1, -1, n_heads // shared.shape[1], -1, -1).flatten(1, 2)


def _spelled_mix(scale: float | None, softcap: float | None, sinks: Tensor | None) -> Mix:
    """The scores spelled out, because SDPA can neither bend them nor add one; every mask is spelled out too."""

    def mix(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, several: bool) -> Tensor:
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        grouped = query.view(1, key.shape[1], -1, *query.shape[2:])  # [1, kv heads, heads per key, length, d]
        keys, values = key.unsqueeze(2).transpose(-1, -2), value.unsqueeze(2)
        step = max(1, SCORES_MAX // (query.shape[1] * key.shape[2]))
        mixed: list[Tensor] = []
        for first in range(0, query.shape[2], step):
            scores = torch.matmul(grouped[..., first : first + step, :], keys)
            scores = scores.mul_(factor) if softcap is None else scores.mul_(factor / softcap).tanh_().mul_(softcap)
            if mask is not None:
                scores += mask[first : first + step]
            mixed.append(torch.matmul(_shares(scores, sinks, several).to(query.dtype), values))
        return torch.cat(mixed, -2).flatten(1, 2)

    return mix


def _shares(scores: Tensor, sinks: Tensor | None, several: bool) -> Tensor:
    """The softmax of [1, kv heads, heads per key, n, reach], in float32. Of a single token n counts the heads that
    share a key, and there is one head per key.
    """
    if sinks is None:
        return scores.softmax(-1, dtype=torch.float32)
    kv_heads = scores.shape[1]
    one_each = sinks.view(1, kv_heads, -1, 1, 1) if several else sinks.view(1, kv_heads, 1, -1, 1)
    with_sink = torch.cat((scores.to(torch.float32), one_each.expand(*scores.shape[:-1], 1)), -1)
    return with_sink.softmax(-1)[..., :-1]
