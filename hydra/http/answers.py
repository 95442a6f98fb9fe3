"""A checked request as the answers it asks for: one prompt in ids and one generation each. Pure.

Promises that what it returns can be begun: every prompt has tokens of the vocabulary and leaves room to answer. It does
not know how a generation runs, nor what is shown of it.
"""

from typing import Literal

import attrs

from hydra.actors.client import GenerateRequest
from hydra.http.openai_request import ApiRequest
from hydra.http.tokenizer import Words
from hydra.protocol.batch import int32
from hydra.protocol.context_length import context_overflow
from hydra.protocol.model_spec import ModelCard
from hydra.protocol.refusal import RefusalError, refuse
from hydra.protocol.sampling import SamplingParams


@attrs.frozen(kw_only=True)
class Answer:
    """One generation to run."""

    index: int
    prompt: tuple[int, ...]
    choice: int


def answers_of(request: ApiRequest, words: Words, card: ModelCard) -> tuple[Answer, ...]:
    """Raises RefusalError: context_length_exceeded, or what the template says."""
    if request.kind == "chat":
        prompts = [tuple(words.encode_chat(request.chat))]
    else:
        prompts = [
            tuple(words.encode_prompt(prompt)) if isinstance(prompt, str) else prompt for prompt in request.prompts
        ]
    answers: list[Answer] = []
    for prompt in prompts:
        _check_prompt(request, prompt, card)
        for choice in range(request.n):
            answers.append(Answer(index=len(answers), prompt=prompt, choice=choice))
    return tuple(answers)


def _check_prompt(request: ApiRequest, prompt: tuple[int, ...], card: ModelCard) -> None:
    param: Literal["messages", "prompt"] = "messages" if request.kind == "chat" else "prompt"
    if not prompt:
        raise refuse("invalid_value", f"{param} gives no token", param=param)
    if max(prompt) >= card.vocab:
        raise refuse("invalid_value", f"token id {max(prompt)} is beyond the vocabulary of {card.vocab}", param=param)
    completion = 1 if request.max_tokens is None else request.max_tokens
    if len(prompt) + completion > card.max_model_len:
        raise RefusalError(context_overflow(card.max_model_len, len(prompt), completion, param))


def generate_request(request: ApiRequest, answer: Answer, card: ModelCard) -> GenerateRequest:
    stop_ids = (() if request.ignore_eos else card.eos_ids) + request.stop_token_ids
    return GenerateRequest(
        model_id=card.model_id,
        prompt_ids=int32(answer.prompt),
        max_tokens=request.max_tokens or card.max_model_len - len(answer.prompt),
        params=SamplingParams(
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            min_p=request.min_p,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            repetition_penalty=request.repetition_penalty,
            logit_bias=request.logit_bias,
            seed=request.seed,
            choice=answer.choice,
            logprobs=request.logprobs,
            min_tokens=request.min_tokens,
            stop_ids=stop_ids if request.min_tokens else (),
        ),
        stop_ids=stop_ids,
    )
