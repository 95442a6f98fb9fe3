"""Logits to tokens: masks, then Gumbel-max with noise from a counter, so that a replay draws the same token.

token = argmax over ids of logit / T + g(seed, choice, position, id). The noise of an id depends on nothing else: not
on the batch, the order of ids, or earlier draws. Source of the trick: Gumbel (1954); Maddison et al., arXiv 1411.0030.
The generator is the finaliser of SplitMix64 (Steele et al., OOPSLA 2014) over a keyed counter.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hydra.protocol.batch import Int32Column, Logprobs, OpenRow
from hydra.protocol.sampling import SamplingParams

_MASK = (1 << 64) - 1


def sample(logits: Tensor, rows: Sequence[OpenRow]) -> tuple[Int32Column, Logprobs | None]:
    """logits [R, V] float32, one row per OpenRow whose position is that of the token to draw.

    Raises FloatingPointError when a row is not finite: something upstream is broken, and no token is honest.
    """
    if not bool(torch.isfinite(logits).all()):
        raise FloatingPointError("the logits are not finite")
    params = [row.params or SamplingParams() for row in rows]
    logprobs = _logprobs_wanted(logits, params)
    chosen = logits.argmax(dim=-1)
    for index, (row, wanted) in enumerate(zip(rows, params, strict=True)):
        if not _is_plain_greedy(wanted, row):
            chosen[index] = _draw(logits[index].clone(), row, wanted)
    tokens = chosen.to("cpu", torch.int32).numpy()
    return tokens, None if logprobs is None else _told(logprobs, tokens, params)


def _is_plain_greedy(params: SamplingParams, row: OpenRow) -> bool:
    banned = params.min_tokens > row.position - row.prompt_tokens and params.stop_ids
    return params.temperature == 0.0 and not params.logit_bias and not params.needs_history and not banned


def _draw(logits: Tensor, row: OpenRow, params: SamplingParams) -> int:
    _apply_bias_and_penalties(logits, row, params)
    if params.stop_ids and row.position - row.prompt_tokens < params.min_tokens:
        logits[torch.tensor(params.stop_ids, device=logits.device)] = -torch.inf
    if params.temperature == 0.0:
        return int(logits.argmax())
    logits = logits / params.temperature
    _keep_top(logits, params)
    noise = gumbel(params.seed, params.choice, row.position, logits.shape[-1])
    return int((logits.double() + torch.from_numpy(noise).to(logits.device)).argmax())


def _apply_bias_and_penalties(logits: Tensor, row: OpenRow, params: SamplingParams) -> None:
    if params.logit_bias:
        ids = torch.tensor([token for token, _ in params.logit_bias], device=logits.device)
        values = torch.tensor([value for _, value in params.logit_bias], device=logits.device)
        inside = ids < logits.shape[-1]
        logits.index_add_(0, ids[inside], values[inside].to(logits.dtype))
    if not params.needs_history:
        return
    history = torch.tensor(row.history, dtype=torch.int64, device=logits.device)
    if params.repetition_penalty != 1.0:
        seen = torch.unique(history)
        values = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    generated = history[row.prompt_tokens :]
    counts = torch.bincount(generated, minlength=logits.shape[-1]).to(logits.dtype)
    logits -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)


def _keep_top(logits: Tensor, params: SamplingParams) -> None:
    """Masks in place what top_k, top_p and min_p exclude; ties with the last kept one stay."""
    vocab = logits.shape[-1]
    if 0 < params.top_k < vocab:
        logits[logits < logits.topk(params.top_k).values[-1]] = -torch.inf
    if params.top_p < 1.0:
        ordered, order = logits.sort(descending=True, stable=True)
        probs = ordered.softmax(dim=-1)
        excluded = probs.cumsum(dim=-1) - probs >= params.top_p
        excluded[0] = False
        logits[order[excluded]] = -torch.inf
    if params.min_p > 0.0:
        logits[logits < logits.max() + float(np.log(params.min_p))] = -torch.inf


def gumbel(seed: int, choice: int, position: int, vocab: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Standard Gumbel noise of every token id at one position, float64 [vocab]."""
    key = _mix_scalar(_mix_scalar(_mix_scalar(seed & _MASK) ^ (choice & _MASK)) ^ (position & _MASK))
    with np.errstate(over="ignore"):
        bits = _mix(np.arange(vocab, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key))
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise: np.ndarray[tuple[int], np.dtype[np.float64]] = -np.log(-np.log(uniform))
    return noise


def _mix(z: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _mix_scalar(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _logprobs_wanted(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor | None:
    if all(wanted.logprobs is None for wanted in params):
        return None
    return logits.log_softmax(dim=-1).cpu()


def _told(logprobs: Tensor, tokens: Int32Column, params: Sequence[SamplingParams]) -> Logprobs:
    widest = max((wanted.logprobs or 0) for wanted in params)
    n = len(params)
    chosen = np.full(n, np.nan, dtype=np.float32)
    top_ids = np.full((n, widest), -1, dtype=np.int32)
    top = np.full((n, widest), np.nan, dtype=np.float32)
    for index, wanted in enumerate(params):
        if wanted.logprobs is None:
            continue
        chosen[index] = float(logprobs[index, int(tokens[index])])
        best = logprobs[index].topk(min(wanted.logprobs, logprobs.shape[-1]))
        top_ids[index, : len(best.indices)] = best.indices.numpy()
        top[index, : len(best.values)] = best.values.numpy()
    return Logprobs(chosen=chosen, top_ids=top_ids, top=top)
