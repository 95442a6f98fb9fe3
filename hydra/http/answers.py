"""A checked request as the answers it asks for: one prompt in ids and one generation each. Pure.

Promises that what it returns can be begun: every prompt has tokens of the vocabulary and leaves room to answer. It does
not know how a generation runs, nor what is shown of it.
"""

from typing import Literal

import attrs

from hydra.actors.client import GenerateRequest
from hydra.http.openai_request import ApiRequest
from hydra.http.prompts import Prompt
from hydra.protocol.batch import Int32Column, token_ids_field
from hydra.protocol.codec import CONTROL_BYTES_MAX
from hydra.protocol.context_length import context_overflow
from hydra.protocol.model.model_spec import ModelCard
from hydra.protocol.refusal import RefusalError, refuse
from hydra.text.tokenizer import ModelTokenizer

ANSWERS_MAX = 1024  # of one request: prompts times n. More would never find room in a queue of the usual size
# Of one sequence: an answer that is replayed travels in one message of the command lane, its parameters beside it.
SEQUENCE_TOKENS_MAX = (CONTROL_BYTES_MAX - (128 << 10)) // 4
ANSWER_TOKENS_MAX = 16 << 20  # prompt tokens of all answers of one request: each of them is sent and kept apart


@attrs.frozen(kw_only=True)
class Answer:
    """One generation to run. The n answers to a prompt share it."""

    index: int
    prompt: Int32Column = token_ids_field()
    choice: int
    echo: str = ""  # the prompt in words, where the answer is to begin with it


def context_of(card: ModelCard) -> int:
    """Tokens that a prompt and its answer may have together."""
    return min(card.max_model_len, SEQUENCE_TOKENS_MAX)


def answers_of(request: ApiRequest, words: ModelTokenizer, card: ModelCard) -> tuple[Answer, ...]:
    """Raises RefusalError: context_length_exceeded, too many answers at once, or what the template says."""
    if len(request.prompts) * request.n > ANSWERS_MAX:
        message = f"{len(request.prompts)} prompts with n: {request.n} are more than {ANSWERS_MAX} answers at once"
        raise refuse("invalid_value", f"{message}; send several requests", param="n")
    if request.kind == "chat":
        rendered = words.render(request.chat)
        _check_length(request, words.least_tokens(rendered), card)
        prompts = [words.encode_rendered(rendered)]
    else:
        prompts = [_prompt_ids(request, prompt, words, card) for prompt in request.prompts]
    for prompt in prompts:
        _check_prompt(request, prompt, card)
    tokens = sum(map(len, prompts)) * request.n
    if request.n > 1 and tokens > ANSWER_TOKENS_MAX:
        message = (
            f"n: {request.n} makes {tokens} prompt tokens, more than {ANSWER_TOKENS_MAX} at once; send a smaller n"
        )
        raise refuse("invalid_value", message, param="n")
    answers: list[Answer] = []
    for prompt, written in zip(prompts, request.prompts or (None,), strict=True):
        shared = Answer(index=0, prompt=prompt, choice=0, echo=_text_of(request, written, words))
        for choice in range(request.n):
            answers.append(attrs.evolve(shared, index=len(answers), choice=choice))
    return tuple(answers)


def _prompt_ids(request: ApiRequest, prompt: Prompt, words: ModelTokenizer, card: ModelCard) -> Int32Column:
    if not isinstance(prompt, str):
        return prompt
    _check_length(request, words.least_tokens(prompt), card)
    return words.encode_prompt(prompt)


def _text_of(request: ApiRequest, prompt: Prompt | None, words: ModelTokenizer) -> str:
    """What an echo shows."""
    if not request.echo or prompt is None:
        return ""
    return prompt if isinstance(prompt, str) else words.decode(prompt, skip_special=request.skip_special_tokens)


def _check_prompt(request: ApiRequest, prompt: Int32Column, card: ModelCard) -> None:
    param: Literal["messages", "prompt"] = "messages" if request.kind == "chat" else "prompt"
    if not len(prompt):
        raise refuse("invalid_value", f"{param} gives no token", param=param)
    if (largest := int(prompt.max())) >= card.vocab:
        raise refuse("invalid_value", f"token id {largest} is beyond the vocabulary of {card.vocab}", param=param)
    _check_length(request, len(prompt), card)


def _check_length(request: ApiRequest, prompt_tokens: int, card: ModelCard) -> None:
    """Raises RefusalError: so many do not fit, nor do more. Asked before a text is encoded, and after."""
    completion = 1 if request.max_tokens is None else request.max_tokens
    limit = context_of(card)
    if prompt_tokens + completion > limit:
        param: Literal["messages", "prompt"] = "messages" if request.kind == "chat" else "prompt"
        raise RefusalError(context_overflow(limit, prompt_tokens, completion, param))


def generate_request(request: ApiRequest, answer: Answer, card: ModelCard, end_ids: tuple[int, ...]) -> GenerateRequest:
    """`end_ids`: what the tokenizer's files say of the end, beside the card. An answer ends at either."""
    ends = () if request.ignore_eos else (*card.eos_ids, *(token for token in end_ids if token < card.vocab))
    stop_ids = tuple(dict.fromkeys((*ends, *request.stop_token_ids)))
    return GenerateRequest(
        model_id=card.model_id,
        prompt=answer.prompt,
        max_tokens=request.max_tokens or context_of(card) - len(answer.prompt),
        params=attrs.evolve(
            request.sampling, choice=answer.choice, stop_ids=stop_ids if request.sampling.min_tokens else ()
        ),
        stop_ids=stop_ids,
    )
