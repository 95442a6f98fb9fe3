"""One reader of a simulated cluster: asks, comes back when it is told when, and writes down what it sees."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import attrs
import trio

from hydra.actors.client import GenerateRequest
from hydra.protocol.batch import token_ids
from hydra.protocol.refusal import Refusal, RefusalError
from hydra.protocol.sampling import SamplingParams
from hydra.simulation.asgi_client import exchange
from hydra.simulation.http_reader import read_stream
from hydra.simulation.pocket_model import MODEL_ID
from hydra.simulation.scene import Scene


@attrs.define(eq=False)
class Chat:
    """One reader and what it has seen."""

    number: int
    prompt: tuple[int, ...]
    max_tokens: int
    params: SamplingParams
    stop_ids: tuple[int, ...]
    frontend: str
    tokens: list[int] = attrs.field(factory=list)
    finish: Literal["stop", "length"] | None = None
    refusal: Refusal | None = None
    left: bool = False
    ends: int = 0
    turned_away: int = 0  # a refusal before the first token that said when to come back
    news: trio.Event = attrs.field(factory=trio.Event)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    @property
    def over(self) -> bool:
        return self.ends > 0

    async def until(self, n_tokens: int) -> None:
        while len(self.tokens) < n_tokens and not self.over:
            await self.news.wait()

    async def finished(self) -> None:
        while not self.over:
            await self.news.wait()

    def leave(self) -> None:
        """The reader walks away."""
        self.scope.cancel()

    def tell(self) -> None:
        self.news.set()
        self.news = trio.Event()


async def read(scene: Scene, chat: Chat, leave_after: int | None) -> None:
    request = GenerateRequest(
        model_id=MODEL_ID,
        prompt=token_ids(chat.prompt),
        max_tokens=chat.max_tokens,
        params=chat.params,
        stop_ids=chat.stop_ids,
        request=1 + chat.number // 3,  # some share a request, and some requests a key
        owner=("", "a", "b")[chat.number % 7 % 3],
    )
    scene.say(f"chat {chat.number} asks for {chat.max_tokens} after {len(chat.prompt)}")
    with chat.scope:
        await _ask(scene, chat, request, leave_after)
        while chat.refusal is not None and chat.refusal.retry_after_s is not None and not chat.tokens:
            chat.turned_away += 1
            await trio.sleep(chat.refusal.retry_after_s)
            await _ask(scene, chat, request, leave_after)
    chat.left = chat.scope.cancelled_caught
    chat.ends += 1
    scene.say(f"chat {chat.number} ends: {chat.finish or chat.refusal or 'left'} after {len(chat.tokens)} tokens")
    chat.tell()


async def _ask(scene: Scene, chat: Chat, request: GenerateRequest, leave_after: int | None) -> None:
    """Once. A refusal that says when to come back, before the first token, is no end."""
    chat.refusal = None
    while not scene.nodes[chat.frontend].alive or scene.nodes[chat.frontend].family is None:
        await trio.sleep(0.1)  # connection refused
    try:
        async with _pieces(scene, chat, request) as pieces:
            async for token_ids, finish in pieces:
                assert chat.finish is None, "a piece after the last one"
                chat.tokens += token_ids
                chat.finish = finish
                chat.tell()
                if leave_after is not None and len(chat.tokens) >= leave_after:
                    chat.leave()
    except (RefusalError, ExceptionGroup) as error:
        chat.refusal = _refusal_in(error)


@asynccontextmanager
async def _pieces(scene: Scene, chat: Chat, request: GenerateRequest) -> AsyncIterator[Any]:
    """(token ids, finish) as they come: over HTTP, or straight from the frontend."""
    node = scene.nodes[chat.frontend]
    if not scene.shape.http:
        async with node.family.generate(request) as pieces:
            yield ((tuple(token.token for token in tokens), tokens[-1].finish) async for tokens in pieces)
        return
    body = {
        "model": MODEL_ID, "prompt": list(chat.prompt), "max_tokens": chat.max_tokens, "stream": True,
        "temperature": chat.params.temperature, "seed": chat.params.seed, "stop_token_ids": list(chat.stop_ids),
        "return_token_ids": True,
    }  # fmt: skip
    async with exchange(node.app, "POST", "/v1/completions", body) as answer:
        yield read_stream(answer)


def _refusal_in(why: Exception) -> Refusal:
    """Nurseries wrap what is raised in them."""
    while isinstance(why, ExceptionGroup) and len(why.exceptions) == 1:
        why = why.exceptions[0]
    if not isinstance(why, RefusalError):
        raise why
    return why.refusal
