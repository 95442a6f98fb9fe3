"""The routes of OpenAI's API. Each is a few lines: read, check, ask the cluster, answer."""

from collections.abc import AsyncIterator
from typing import Any

import trio
from quart import Response, request
from quart_trio import QuartTrio

from hydra.http.answers import answers_of, context_of
from hydra.http.api import Api, json_response
from hydra.http.disclosure import origin_of, without_paths
from hydra.http.failures import body_of
from hydra.http.fields import key_name
from hydra.http.generate import Asked, Deltas, start_answers
from hydra.http.openai_request import read_request
from hydra.http.openai_response import PING, Writer, sse
from hydra.http.owner import owner_of
from hydra.http.parameters import ApiKind
from hydra.http.request_scope import request_nursery
from hydra.http.teller import Delta
from hydra.protocol.model.model_spec import ModelCard
from hydra.protocol.refusal import RefusalError, refuse

FIRST_BYTE_S = 10.0  # so long may a stream's status wait for its first token; proxies give up after a minute or less
PING_AFTER_S = 15.0
STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


def add_openai_routes(app: QuartTrio, api: Api) -> None:
    @app.post("/v1/chat/completions")
    async def chat() -> Response:
        return await _generate(api, "chat")

    @app.post("/v1/completions")
    async def completions() -> Response:
        return await _generate(api, "text")

    @app.get("/v1/models")
    async def models() -> Response:
        return json_response({"object": "list", "data": [_model(card) for card in await api.cluster.models()]})

    @app.get("/v1/models/<path:model_id>")
    async def model(model_id: str) -> Response:
        for card in await api.cluster.models():
            if card.model_id == model_id:
                return json_response(_model(card))
        raise refuse("model_not_found", f"no model {model_id!r} is loaded", param="model")


async def _generate(api: Api, kind: ApiKind) -> Response:
    body = await request.get_data()
    parsed = await api.encoders.read(body, read_request, kind)
    first_byte_at_s = trio.current_time() + FIRST_BYTE_S
    if api.shutdown.begun.is_set():
        raise refuse("shutting_down", "the server is stopping", retry_after_s=5.0)
    card, words = await api.model(parsed.model)
    parsed = parsed.with_defaults(card.default_sampling)
    answers = await api.encoders.run(len(body), answers_of, parsed, words, card)
    writer = Writer(parsed, answers, words.vocabulary)
    headers: dict[str, str] = {}
    unread = words.overlooked(parsed.chat) if kind == "chat" else ()
    ignored = [*parsed.ignored, *(f"chat_template_kwargs.{key_name(name)}" for name in unread)]
    if ignored:
        headers["x-hydra-ignored"] = ",".join(ignored)[:1000]
    asked = Asked(
        cluster=api.cluster,
        request=parsed,
        answers=answers,
        words=words,
        card=card,
        number=next(api.numbers),
        owner=owner_of(request.headers.get("Authorization")),
        response_id=writer.id,
    )
    deltas = start_answers(request_nursery(), asked, api.shutdown.last_call)
    if not parsed.stream:
        return json_response(writer.whole(await deltas.all()), headers=headers)
    first: list[Delta] | None = None
    with trio.move_on_at(first_byte_at_s):
        first = await deltas.next()  # the status waits for it, so that a refusal can still be one
    response = Response(_events(deltas, first, writer), headers={**STREAM_HEADERS, **headers})
    response.timeout = None  # the framework would cut every stream after a minute
    return response


async def _events(deltas: Deltas, first: list[Delta] | None, writer: Writer) -> AsyncIterator[bytes]:
    """`first` is None when it is still to come: a ping stands for it, and a refusal is now an event."""
    if first is None:
        yield PING
    try:
        some = first
        while some is None or some:
            if some:
                yield writer.chunks(some)
            some = None
            with trio.move_on_after(PING_AFTER_S):
                some = await deltas.next()
            if some is None:
                yield PING
    except RefusalError as error:
        yield sse(body_of(without_paths(error.refusal)))
        return
    yield writer.last_chunks()


def _model(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.model_id,
        "object": "model",
        "created": card.created_s,
        "owned_by": "hydra",
        "root": origin_of(card),
        "parent": None,
        "max_model_len": context_of(card),
    }
