"""A checked request becomes running generations, and their tokens become text deltas in one ordered stream.

One answer is one generation (n answers, n generations, `choice` 0 .. n-1). Answers run side by side and meet in one
bounded channel; leaving this file's context closes them all, whoever leaves and why.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import attrs
import trio

from hydra.actors.client import Cluster, GenerateRequest, TokenLogprobs
from hydra.http.detokenizer import Detokenizer, StopWatch
from hydra.http.openai_request import ApiRequest
from hydra.http.tokenizer import Words
from hydra.protocol.batch import int32
from hydra.protocol.model_spec import ModelCard
from hydra.protocol.refusal import Refusal, RefusalError, refuse
from hydra.protocol.sampling import SamplingParams

PIECES_MAX = 64  # deltas that wait for a slow reader, over all answers of one request
PIPE_FULL = Refusal(code="shutting_down", message="the server is stopping")


@attrs.frozen(kw_only=True)
class TokenShown:
    """A token beside its text, for logprobs."""

    token: int
    logprobs: TokenLogprobs


@attrs.frozen(kw_only=True)
class Delta:
    """New text of one answer; the last one carries the finish."""

    index: int
    text: str
    tokens: int
    finish: Literal["stop", "length"] | None = None
    shown: tuple[TokenShown, ...] | None = None
    cached: int = 0


@attrs.frozen(kw_only=True)
class Answer:
    """One generation to run."""

    index: int
    prompt: tuple[int, ...]
    choice: int


def answers_of(request: ApiRequest, words: Words, card: ModelCard) -> tuple[Answer, ...]:
    """Raises RefusalError: context_length_exceeded, or what the template says."""
    if request.kind == "chat":
        prompts = [tuple(words.encode_chat(request.messages, request.template_kwargs))]
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
    param = "messages" if request.kind == "chat" else "prompt"
    if not prompt:
        raise refuse("invalid_value", f"{param} gives no token", param=param)
    if max(prompt) >= card.vocab:
        raise refuse("invalid_value", f"token id {max(prompt)} is beyond the vocabulary of {card.vocab}", param=param)
    room = card.max_model_len - len(prompt)
    if room < (request.max_tokens or 1):
        wanted = f"{len(prompt)} prompt tokens and {request.max_tokens or 1} to generate"
        message = f"{wanted} exceed this model's context of {card.max_model_len} tokens"
        raise refuse("context_length_exceeded", message, param=param)


def _generate_request(request: ApiRequest, answer: Answer, card: ModelCard) -> GenerateRequest:
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


@asynccontextmanager
async def run_answers(
    cluster: Cluster, request: ApiRequest, answers: tuple[Answer, ...], words: Words, card: ModelCard
) -> AsyncIterator["Deltas"]:
    """All answers of a request, side by side."""
    send, receive = trio.open_memory_channel[Delta | RefusalError](PIECES_MAX)
    async with trio.open_nursery() as nursery:
        for answer in answers:
            nursery.start_soon(_run_answer, cluster, request, answer, words, card, send.clone())
        send.close()
        yield Deltas(receive)
        nursery.cancel_scope.cancel()


@attrs.define(eq=False)
class Deltas:
    """The deltas of all answers as they come. Raises RefusalError when one of them cannot go on."""

    receive: trio.MemoryReceiveChannel[Delta | RefusalError]

    async def next(self) -> list[Delta]:
        """At least one, and all that wait; empty at the end."""
        try:
            found = [await self.receive.receive()]
        except trio.EndOfChannel:
            return []
        while True:
            try:
                found.append(self.receive.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                break
        deltas: list[Delta] = []
        for item in found:
            if isinstance(item, RefusalError):
                raise item
            deltas.append(item)
        return deltas


async def _run_answer(
    cluster: Cluster,
    request: ApiRequest,
    answer: Answer,
    words: Words,
    card: ModelCard,
    send: trio.MemorySendChannel[Delta | RefusalError],
) -> None:
    detokenizer = Detokenizer(words.decode)
    watch = StopWatch(request.stop, request.include_stop)
    async with send:
        try:
            if request.echo:
                await send.send(Delta(index=answer.index, text=words.decode(answer.prompt), tokens=0))
            async with cluster.generate(_generate_request(request, answer, card)) as generation:
                async for piece in generation:
                    ids = piece.token_ids
                    text, used = "", 0
                    for number, token in enumerate(ids):
                        used += 1
                        is_end = piece.finish == "stop" and number == len(ids) - 1
                        if not is_end:
                            text += watch.push(detokenizer.push(token))
                        if watch.stopped:
                            break
                    if piece.finish and not watch.stopped:
                        text += watch.push(detokenizer.flush())
                        text += watch.flush()
                    finish = "stop" if watch.stopped else piece.finish
                    shown = None
                    if piece.logprobs is not None:
                        shown = tuple(
                            TokenShown(token=token, logprobs=logprobs)
                            for token, logprobs in zip(ids[:used], piece.logprobs[:used], strict=True)
                        )
                    await send.send(
                        Delta(
                            index=answer.index,
                            text=text,
                            tokens=used,
                            finish=finish,
                            shown=shown,
                            cached=piece.cached_tokens,
                        )
                    )
                    if finish is not None:
                        return
        except RefusalError as why:
            await send.send(why)
