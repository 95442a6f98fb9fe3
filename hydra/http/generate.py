"""A checked request becomes running generations, and their tokens become text deltas in one ordered stream.

One answer is one generation (n answers, n generations, `choice` 0 .. n-1). Answers run side by side in the request's
nursery and meet in one bounded channel; the end of the request is the end of them all, whoever ends it and why.
"""

from typing import Literal

import attrs
import structlog
import trio

from hydra.actors.client import Cluster, GenerateRequest, Piece, TokenLogprobs
from hydra.http.detokenizer import Detokenizer, StopWatch
from hydra.http.openai_request import ApiRequest
from hydra.http.tokenizer import Words
from hydra.protocol.batch import int32
from hydra.protocol.model_spec import ModelCard
from hydra.protocol.refusal import Refusal, RefusalError, refuse
from hydra.protocol.sampling import SamplingParams

PIECES_MAX = 64  # deltas that wait for a slow reader, over all answers of one request
STOPPING = Refusal(code="shutting_down", message="the server is stopping and could not wait longer for this answer")

log = structlog.get_logger()


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
    ids: tuple[int, ...]  # the tokens behind it, the one that ended the answer among them
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


@attrs.define(eq=False)
class Deltas:
    """The deltas of all answers as they come. Raises RefusalError when one of them cannot go on."""

    receive: trio.MemoryReceiveChannel[Delta | RefusalError]
    _failure: RefusalError | None = None

    async def next(self) -> list[Delta]:
        """At least one, and all that wait; empty at the end. What came before a failure is shown before it."""
        if self._failure is not None:
            raise self._failure
        found: list[Delta] = []
        try:
            self._add(found, await self.receive.receive())
            while self._failure is None:
                self._add(found, self.receive.receive_nowait())
        except (trio.EndOfChannel, trio.WouldBlock):
            pass
        if not found and self._failure is not None:
            raise self._failure
        return found

    def _add(self, found: list[Delta], item: Delta | RefusalError) -> None:
        if isinstance(item, RefusalError):
            self._failure = item
        else:
            found.append(item)

    async def all(self) -> list[Delta]:
        """Every delta there will be."""
        found: list[Delta] = []
        while some := await self.next():
            found += some
        return found


@attrs.frozen(kw_only=True)
class Asked:
    """One request on its way: what is asked, of which model, in which words."""

    cluster: Cluster
    request: ApiRequest
    answers: tuple[Answer, ...]
    words: Words
    card: ModelCard


def start_answers(nursery: trio.Nursery, asked: Asked, last_call: trio.Event) -> Deltas:
    """All answers of a request, side by side, in the request's own nursery; at the last call they end with an error."""
    send, receive = trio.open_memory_channel[Delta | RefusalError](PIECES_MAX)
    nursery.start_soon(_run_answers, asked, send, last_call)
    return Deltas(receive)


async def _run_answers(asked: Asked, send: trio.MemorySendChannel[Delta | RefusalError], last_call: trio.Event) -> None:
    async with send, trio.open_nursery() as nursery:

        async def end_at_last_call() -> None:
            await last_call.wait()
            running.cancel_scope.cancel()
            await send.send(RefusalError(STOPPING))

        nursery.start_soon(end_at_last_call)
        async with trio.open_nursery() as running:
            for answer in asked.answers:
                running.start_soon(_run_answer, asked, answer, send)
        if not last_call.is_set():
            nursery.cancel_scope.cancel()


async def _run_answer(asked: Asked, answer: Answer, send: trio.MemorySendChannel[Delta | RefusalError]) -> None:
    """One answer to its end. Whatever goes wrong is told to the reader; a bug is logged as well."""
    teller = Teller.of(asked.request, answer, asked.words)
    try:
        if asked.request.echo:
            await send.send(Delta(index=answer.index, text=asked.words.decode(answer.prompt), ids=()))
        generation_request = _generate_request(asked.request, answer, asked.card)
        async with asked.cluster.generate(generation_request) as generation:
            async for piece in generation:
                delta = teller.tell(piece)
                await send.send(delta)
                if delta.finish is not None:
                    return
    except RefusalError as why:
        await send.send(why)
    except Exception:
        log.exception("an answer failed")
        await send.send(refuse("internal_error", "internal error"))


@attrs.define
class Teller:
    """One answer's tokens as text: decoded, watched for stop strings, cut at the end."""

    index: int
    detokenizer: Detokenizer
    watch: StopWatch

    @classmethod
    def of(cls, request: ApiRequest, answer: Answer, words: Words) -> "Teller":
        context = answer.prompt if request.kind == "text" or request.chat.continue_final_message else ()
        return cls(answer.index, Detokenizer(words.decode, context), StopWatch(request.stop, request.include_stop))

    def tell(self, piece: Piece) -> Delta:
        text, used = "", 0
        for number, token in enumerate(piece.token_ids):
            used += 1
            ends_it = piece.finish == "stop" and number == len(piece.token_ids) - 1
            if not ends_it:  # the id that ended the answer is not part of its text
                text += self.watch.push(self.detokenizer.push(token))
            if self.watch.stopped:
                break
        if piece.finish and not self.watch.stopped:
            text += self.watch.push(self.detokenizer.flush())
            text += self.watch.flush()
        shown = None
        if piece.logprobs is not None:
            pairs = zip(piece.token_ids[:used], piece.logprobs[:used], strict=True)
            shown = tuple(TokenShown(token=token, logprobs=logprobs) for token, logprobs in pairs)
        return Delta(
            index=self.index,
            text=text,
            ids=piece.token_ids[:used],
            finish="stop" if self.watch.stopped else piece.finish,
            shown=shown,
            cached=piece.cached_tokens,
        )
