"""Answers become running generations, and their text deltas one ordered stream.

One answer is one generation (n answers, n generations, `choice` 0 .. n-1). Answers run side by side in the request's
nursery and meet in one bounded channel; the end of the request is the end of them all, whoever ends it and why.
"""

import attrs
import structlog
import trio

from hydra.actors.client import Cluster
from hydra.http.answers import Answer, generate_request
from hydra.http.openai_request import ApiRequest
from hydra.http.teller import Delta, Teller
from hydra.protocol.model.model_spec import ModelCard
from hydra.protocol.refusal import Refusal, RefusalError, refuse
from hydra.text.tokenizer import ModelTokenizer

PIECES_MAX = 64  # deltas that wait for a slow reader, over all answers of one request
STOPPING = Refusal(code="shutting_down", message="the server is stopping and could not wait longer for this answer")

log = structlog.get_logger()


@attrs.define(eq=False)
class Deltas:
    """The deltas of all answers as they come. Raises RefusalError when one of them cannot go on."""

    receive: trio.MemoryReceiveChannel[Delta | RefusalError]
    _failure: RefusalError | None = None

    async def next(self) -> list[Delta]:
        """At least one, and all that wait; empty at the end. What came before a failure is shown before it."""
        if self._failure is not None:
            raise self._failure
        deltas: list[Delta] = []
        try:
            self._add(deltas, await self.receive.receive())
            while self._failure is None:
                self._add(deltas, self.receive.receive_nowait())
        except (trio.EndOfChannel, trio.WouldBlock):
            pass
        if not deltas and self._failure is not None:
            raise self._failure
        return deltas

    def _add(self, deltas: list[Delta], item: Delta | RefusalError) -> None:
        if isinstance(item, RefusalError):
            self._failure = item
        else:
            deltas.append(item)

    async def all(self) -> list[Delta]:
        """Every delta there will be."""
        deltas: list[Delta] = []
        while some := await self.next():
            deltas += some
        return deltas


@attrs.frozen(kw_only=True)
class Asked:
    """One request on its way: what is asked, of which model, in which words."""

    cluster: Cluster
    request: ApiRequest
    answers: tuple[Answer, ...]
    words: ModelTokenizer
    card: ModelCard
    number: int  # of this request in this frontend
    owner: str  # see owner.py
    response_id: str  # of the answer that the reader gets


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
            only = asked.request.max_tokens == 0  # the prompt is all there is to say
            await send.send(Delta(index=answer.index, text=answer.echo, tokens=(), finish="length" if only else None))
            if only:
                return
        plain = generate_request(asked.request, answer, asked.card, asked.words.end_ids)
        generation_request = attrs.evolve(plain, request=asked.number, owner=asked.owner, response_id=asked.response_id)
        async with asked.cluster.generate(generation_request) as generation:
            async for tokens in generation:
                delta = teller.tell(tokens)
                await send.send(delta)
                if delta.finish is not None:
                    return
    except RefusalError as error:
        await send.send(error)
    except Exception:
        log.exception("an answer failed")
        await send.send(refuse("internal_error", "internal error"))
