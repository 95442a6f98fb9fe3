"""A checked request as the answers it asks for: one prompt in ids and one generation each. Pure.

Promises that what it returns can be begun: every prompt has tokens of the vocabulary and leaves room to answer. It does
not know how a generation runs, nor what is shown of it.
"""

from typing import Literal

import attrs

from hydra.actors.client import GenerateRequest
from hydra.http.openai_request import ApiRequest
from hydra.http.tokenizer import Words
from hydra.protocol.batch import Int32Column, int32
from hydra.protocol.context_length import context_overflow
from hydra.protocol.model_spec import ModelCard
from hydra.protocol.refusal import RefusalError, refuse
from hydra.protocol.sampling import SamplingParams

ANSWERS_MAX = 1024  # of one request: prompts times n. More would never find room in a queue of the usual size
ANSWER_TOKENS_MAX = 16 << 20  # prompt tokens of all answers of one request: each of them is sent and kept apart


@attrs.frozen(kw_only=True)
class Answer:
    """One generation to run. The n answers to a prompt share it."""

    index: int
    prompt: tuple[int, ...]
    choice: int
    written: str | None = None  # the prompt as the client wrote it, if it did not send ids: what an echo shows
    prompt_ids: Int32Column = attrs.field(
        default=attrs.Factory(lambda self: int32(self.prompt), takes_self=True), eq=False, repr=False
    )


def answers_of(request: ApiRequest, words: Words, card: ModelCard) -> tuple[Answer, ...]:
    """Raises RefusalError: context_length_exceeded, too many answers at once, or what the template says."""
    if len(request.prompts) * request.n > ANSWERS_MAX:
        message = f"{len(request.prompts)} prompts with n: {request.n} are more than {ANSWERS_MAX} answers at once"
        raise refuse("invalid_value", f"{message}; send several requests", param="n")
    if request.kind == "chat":
        prompts = [tuple(words.encode_chat(request.chat))]
    else:
        prompts = [
            tuple(words.encode_prompt(prompt)) if isinstance(prompt, str) else prompt for prompt in request.prompts
        ]
    for prompt in prompts:
        _check_prompt(request, prompt, card)
    tokens = sum(map(len, prompts)) * request.n
    if request.n > 1 and tokens > ANSWER_TOKENS_MAX:
        message = (
            f"n: {request.n} makes {tokens} prompt tokens, more than {ANSWER_TOKENS_MAX} at once; send a smaller n"
        )
        raise refuse("invalid_value", message, param="n")
    answers: list[Answer] = []
    written = [prompt if isinstance(prompt, str) else None for prompt in request.prompts or (None,)]
    for prompt, text in zip(prompts, written, strict=True):
        shared = Answer(index=0, prompt=prompt, choice=0, written=text)
        for choice in range(request.n):
            answers.append(attrs.evolve(shared, index=len(answers), choice=choice))
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


def generate_request(request: ApiRequest, answer: Answer, card: ModelCard, end_ids: tuple[int, ...]) -> GenerateRequest:
    """`end_ids`: what the tokenizer's files say of the end, beside the card. An answer ends at either."""
    ends = () if request.ignore_eos else (*card.eos_ids, *(token for token in end_ids if token < card.vocab))
    stop_ids = tuple(dict.fromkeys((*ends, *request.stop_token_ids)))
    return GenerateRequest(
        model_id=card.model_id,
        prompt_ids=answer.prompt_ids,
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
