"""From logits to tokens: a pure function of each row's logits, parameters, ids so far and position.

`sample` only enqueues on the logits' device; `settle` reads its answer on the host and says of which rows the logits
were no numbers. Rows never influence each other, such rows neither. Masks are in the order SamplingParams promises.

A row has a fault if its logits hold NaN or plus infinity, or nothing but minus infinity: exactly then the greatest of
them is not finite. Some at minus infinity are no fault: models bar ids that way. A sum would call them one, and
overflow.

Parameters come as float64 and scores are float32: any number that is accepted is safe, since it is first brought where
neither it nor its reciprocal overflows. A temperature below TEMPERATURE_MIN is greedy. The noise of a drawing spans
less than 48, so at that temperature it moves a score by less than float32 numbers of size 1/2 and up lie apart: above
it too, only ids whose scores are equal there take turns.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hydra.kernels.sampling.noise import gumbel, stream_key
from hydra.kernels.tensors import to_device
from hydra.protocol.batch import EMPTY, ROW_FINE, ROW_NOT_FINITE, Int32Column, Logprobs, Outcome, int32
from hydra.protocol.sampling import SamplingParams

TEMPERATURE_MIN = 1e-9
_LARGEST, _SMALLEST = 1e30, 1e-30  # of parameters: far from the ends of float32, as are their reciprocals
_FLOAT32_MAX, _FLOAT32_TINY = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
_NUCLEUS = 1024  # on the CPU, a top_p nucleus is first looked for among so many tokens before all are sorted


@attrs.frozen(kw_only=True)
class Pick:
    """What the choice of one row's next token depends on, beside its logits."""

    params: SamplingParams
    position: int  # of the token to be chosen
    prompt_tokens: int
    history: Int32Column = EMPTY  # ids before it, where the parameters need them


@attrs.frozen(eq=False)
class SampledTensors:
    """Chosen tokens, still on the device. `best[i]`, row i's greatest logit, is finite exactly if the row is fine."""

    token: Tensor
    best: Tensor
    chosen: Tensor | None = None
    top_ids: Tensor | None = None
    top: Tensor | None = None

    def map(self, move: Callable[[Tensor], Tensor]) -> "SampledTensors":
        """The same, with every tensor moved."""
        asked = (None if tensor is None else move(tensor) for tensor in (self.chosen, self.top_ids, self.top))
        return SampledTensors(move(self.token), move(self.best), *asked)


def sample(logits: Tensor, picks: Sequence[Pick]) -> SampledTensors:
    """logits [n, vocab] in float32, one pick per row."""
    token = logits.argmax(-1)
    for row, pick in enumerate(picks):
        if not _plainly_greedy(pick.params):
            token[row] = _choose(logits[row], pick)
    widths = [pick.params.logprobs for pick in picks]
    if all(width is None for width in widths):
        return SampledTensors(token, logits.amax(-1))
    return SampledTensors(token, logits.amax(-1), *_logprobs(logits, token, widths))


def settle(sampled: SampledTensors) -> Outcome:
    """The answer of a host-side SampledTensors."""
    fine = np.isfinite(sampled.best.numpy())
    token = int32(np.where(fine, sampled.token.numpy(), 0))
    fault = int32(np.where(fine, ROW_FINE, ROW_NOT_FINITE))
    if sampled.chosen is None or sampled.top_ids is None or sampled.top is None:
        return Outcome(token=token, fault=fault)
    logprobs = Logprobs(chosen=sampled.chosen.numpy(), top_ids=int32(sampled.top_ids.numpy()), top=sampled.top.numpy())
    return Outcome(token=token, fault=fault, logprobs=logprobs)


def _plainly_greedy(params: SamplingParams) -> bool:
    bans = params.min_tokens > 0 and params.stop_ids
    return params.temperature < TEMPERATURE_MIN and not (params.logit_bias or params.needs_history or bans)


def _choose(raw: Tensor, pick: Pick) -> Tensor:
    """One row's token id. Every row is computed alone, so its bits cannot depend on the batch."""
    params, scores = pick.params, _edited(raw, pick)
    if params.temperature < TEMPERATURE_MIN:
        return scores.argmax()
    values, ids = _narrowed(_tempered(scores, params.temperature), params)
    key = stream_key(params.seed, params.choice, pick.position)
    return ids.take((values + gumbel(key, ids)).argmax())  # ids[...] would wait for the device


def _edited(raw: Tensor, pick: Pick) -> Tensor:
    """The logits behind biases, penalties and bans."""
    params, scores = pick.params, raw.clone()
    _bias(scores, params)
    if params.needs_history:
        scores = _penalised(scores, pick)
    scores.clamp_(max=_FLOAT32_MAX)  # what a penalty has raised beyond
    if params.stop_ids and pick.position - pick.prompt_tokens < params.min_tokens:
        scores.index_fill_(0, _within(scores, _whole(params.stop_ids)), float("-inf"))
    return scores


def _bounded(number: float) -> float:
    return max(-_LARGEST, min(_LARGEST, number))


def _tempered(scores: Tensor, temperature: float) -> Tensor:
    """The best at 0 and the others below it, so that nothing overflows upwards. Overwrites its argument."""
    best = scores.max().clamp_(min=-_FLOAT32_MAX)  # where all are barred, too
    return scores.sub_(best).div_(_bounded(temperature))


def _within(scores: Tensor, ids: npt.NDArray[np.integer[Any]]) -> Tensor:
    """Ids beyond the vocabulary can be neither favoured nor sampled."""
    known = ids[(ids >= 0) & (ids < scores.shape[0])]
    return to_device(known.astype(np.int64), scores.device)


def _whole(ids: Sequence[int]) -> npt.NDArray[np.int64]:
    """Of parameters, which may hold ids beyond int32."""
    return np.array(ids, dtype=np.int64)


def _bias(scores: Tensor, params: SamplingParams) -> None:
    known = [(token, bias) for token, bias in params.logit_bias if 0 <= token < scores.shape[0]]
    if known:
        biases = to_device(np.array([_bounded(bias) for _, bias in known], dtype=np.float32), scores.device)
        scores.index_add_(0, _within(scores, _whole([token for token, _ in known])), biases)


def _penalised(scores: Tensor, pick: Pick) -> Tensor:
    """Repetition looks at prompt and answer, presence and frequency at the answer alone."""
    params, history = pick.params, pick.history[: pick.position]
    if len(history) != pick.position:
        raise ValueError(f"penalties need {pick.position} ids of history, the row has {len(history)}")
    if params.repetition_penalty != 1.0:
        penalty = max(_SMALLEST, _bounded(params.repetition_penalty))
        seen = _within(scores, history)
        here = scores[seen]
        scores[seen] = torch.where(here > 0, here / penalty, here * penalty)
    answer = _within(scores, history[pick.prompt_tokens :])
    counts = torch.zeros_like(scores)
    counts.index_add_(0, answer, torch.ones(answer.shape, device=scores.device))
    return scores - _bounded(params.frequency_penalty) * counts - _bounded(params.presence_penalty) * (counts > 0)


def _narrowed(scores: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Tempered scores after top_k, top_p and min_p, and the token ids they stand for."""
    values, vocab = scores, scores.shape[0]
    ids = torch.arange(vocab, device=scores.device)
    limited = 0 < params.top_k < vocab
    if limited:
        values, ids = scores.topk(params.top_k)
    if params.top_p < 1.0:
        total = values.logsumexp(-1)
        if not limited:
            values, ids = _likeliest(scores, total, params.top_p)
        share = (values - total).exp_()
        values = values.masked_fill(share.cumsum(-1) - share >= max(params.top_p, _FLOAT32_TINY), float("-inf"))
    if params.min_p > 0.0:
        values = values.masked_fill(values < math.log(params.min_p), float("-inf"))  # the best is at 0
    return values, ids


def _likeliest(scores: Tensor, total: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Scores in descending order, at least as many as make up `top_p` of the whole."""
    if scores.device.type == "cpu" and scores.shape[0] > _NUCLEUS:
        values, ids = scores.topk(_NUCLEUS)
        if float((values - total).exp_().sum()) > top_p:
            return values, ids
    values, ids = scores.sort(descending=True)
    return values, ids


def _logprobs(logits: Tensor, token: Tensor, widths: Sequence[int | None]) -> tuple[Tensor, Tensor, Tensor]:
    """Of the raw logits: what the model thinks, not what the masks left of it."""
    widest = min(max(width or 0 for width in widths), logits.shape[1])
    chosen = torch.full((len(widths),), float("nan"), device=logits.device)
    top_ids = torch.full((len(widths), widest), -1, dtype=torch.int64, device=logits.device)
    top = torch.full((len(widths), widest), float("nan"), device=logits.device)
    for row, width in enumerate(widths):
        if width is None:
            continue
        logprobs = logits[row].log_softmax(-1)
        chosen[row] = logprobs.take(token[row])
        if n := min(width, widest):
            top[row, :n], top_ids[row, :n] = logprobs.topk(n)
    return chosen, top_ids, top
