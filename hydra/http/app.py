"""The routes. Each is a few lines: read, check, ask the cluster, answer. Errors are OpenAI's, with all four keys."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal

import attrs
import structlog
import trio
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from hydra.actors.client import Cluster
from hydra.http.answers import answers_of
from hydra.http.failures import body_of, error_body, status_of
from hydra.http.generate import Asked, Deltas, start_answers
from hydra.http.openai_request import parse_json, parse_request
from hydra.http.openai_response import PING, Writer, json_bytes, sse
from hydra.http.request_scope import RequestScope, request_nursery
from hydra.http.shutdown import Shutdown
from hydra.http.teller import Delta
from hydra.http.tokenizer import Words
from hydra.http.words_shelf import WordsShelf
from hydra.protocol.messages import JobStatus, ModelTold, Sample, StatusTold
from hydra.protocol.model_spec import ModelCard
from hydra.protocol.refusal import RefusalError, refuse

PING_AFTER_S = 15.0
STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}

Aside = Callable[..., Awaitable[Any]]

log = structlog.get_logger()


@attrs.define(eq=False)
class Api:
    """What the routes share: the cluster, and the words of each model."""

    cluster: Cluster
    shutdown: Shutdown
    aside: Aside
    shelf: WordsShelf

    async def model(self, name: str) -> tuple[ModelCard, Words]:
        """Raises RefusalError model_not_found, bad_model."""
        cards = await self.cluster.models()
        card = next((card for card in cards if card.model_id == name), None)
        if card is None:
            known = ", ".join(card.model_id for card in cards) or "none"
            raise refuse("model_not_found", f"no model {name!r} is loaded (loaded: {known})", param="model")
        return card, await self.shelf.words_of(card, cards)

    async def prove(self, name: str) -> None:
        """A model that has just been loaded is unloaded again when its words are refused. Raises RefusalError."""
        try:
            await self.model(name)
        except RefusalError as why:
            if why.refusal.code == "model_not_found":
                return  # somebody else has unloaded it by now
            await self.cluster.unload_model(name)
            raise

    async def generate(self, kind: Literal["chat", "text"]) -> Response:
        parsed = parse_request(kind, parse_json(await request.get_data()))
        if self.shutdown.begun.is_set():
            raise refuse("shutting_down", "the server is stopping", retry_after_s=5.0)
        card, words = await self.model(parsed.model)
        parsed = parsed.with_defaults(card.default_sampling)
        answers = await self.aside(answers_of, parsed, words, card)
        writer = Writer(parsed, answers, words.vocabulary)
        headers = {"x-request-id": writer.id}
        ignored = [*parsed.ignored, *(words.overlooked(parsed.chat) if kind == "chat" else ())]
        if ignored:
            headers["x-hydra-ignored"] = ",".join(ignored)[:1000]
        asked = Asked(cluster=self.cluster, request=parsed, answers=answers, words=words, card=card)
        deltas = start_answers(request_nursery(), asked, self.shutdown.last_call)
        if not parsed.stream:
            return json_response(writer.whole(await deltas.all()), headers=headers)
        first = await deltas.next()  # the status waits for it, so that a refusal can still be one
        response = Response(_events(deltas, first, writer), headers={**STREAM_HEADERS, **headers})
        response.timeout = None  # the framework would cut every stream after a minute
        return response


async def _events(deltas: Deltas, first: list[Delta], writer: Writer) -> AsyncIterator[bytes]:
    some = first
    try:
        while some:
            yield writer.chunks(some)
            some = []
            while not some:
                with trio.move_on_after(PING_AFTER_S) as silence:
                    some = await deltas.next()
                if not silence.cancelled_caught:
                    break
                yield PING
    except RefusalError as why:
        yield sse(body_of(why.refusal))
        return
    yield writer.last_chunks()


def json_response(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json_bytes(content), status=status, headers=headers, content_type="application/json")


def make_app(
    cluster: Cluster,
    *,
    max_body_bytes: int,
    shutdown: Shutdown,
    shelf: WordsShelf,
    aside: Aside = trio.to_thread.run_sync,
) -> QuartTrio:
    """The ASGI app over a cluster. `aside` runs what blocks: rendering a template."""
    app = QuartTrio("hydra")
    app.config["MAX_CONTENT_LENGTH"] = max_body_bytes
    app.asgi_app = RequestScope(app.asgi_app)  # type: ignore[method-assign]
    api = Api(cluster, shutdown, aside, shelf)
    _add_openai(app, api)
    _add_cluster(app, api)
    _add_errors(app)
    return app


def _add_openai(app: QuartTrio, api: Api) -> None:
    @app.post("/v1/chat/completions")
    async def chat() -> Response:
        return await api.generate("chat")

    @app.post("/v1/completions")
    async def completions() -> Response:
        return await api.generate("text")

    @app.get("/v1/models")
    async def models() -> Response:
        return json_response({"object": "list", "data": [_model(card) for card in await api.cluster.models()]})

    @app.get("/v1/models/<path:model_id>")
    async def model(model_id: str) -> Response:
        for card in await api.cluster.models():
            if card.model_id == model_id:
                return json_response(_model(card))
        raise refuse("model_not_found", f"no model {model_id!r} is loaded", param="model")


def _add_cluster(app: QuartTrio, api: Api) -> None:
    @app.get("/health")
    async def health() -> Response:
        return json_response({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        told = await api.cluster.ready()
        if told.ready:
            return json_response({"ready": True})
        raise refuse("no_workers", told.why or "not ready", retry_after_s=told.retry_after_s)

    @app.get("/metrics")
    async def metrics() -> Response:
        text = prometheus((await api.cluster.status()).samples)
        return Response(text, content_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/api/cluster/status")
    async def status() -> Response:
        return json_response(_status(await api.cluster.status()))

    @app.post("/api/cluster/rebalance")
    async def rebalance() -> Response:
        return _told(await api.cluster.rebalance())

    @app.post("/api/models/load")
    async def load() -> Response:
        body = parse_json(await request.get_data())
        told = await api.cluster.load_model(**_load_wish(body))
        if told.refusal is None and told.state == "ready" and told.model_id:
            await api.prove(told.model_id)
        return _told(told)

    @app.get("/api/models/jobs")
    async def jobs() -> Response:
        return json_response({"jobs": [_job(job) for job in await api.cluster.jobs(None)]})

    @app.get("/api/models/jobs/<job_id>")
    async def job(job_id: str) -> Response:
        return json_response(_job((await api.cluster.jobs(job_id))[0]))

    @app.delete("/api/models/jobs/<job_id>")
    async def cancel(job_id: str) -> Response:
        return json_response(_job((await api.cluster.cancel_job(job_id))[0]))

    @app.post("/api/models/unload")
    async def unload() -> Response:
        body = parse_json(await request.get_data())
        return _told(await api.cluster.unload_model(_text(body, "model_id", required=True) or ""))


def _text(body: dict[str, Any], name: str, *, required: bool = False) -> str | None:
    value = body.get(name)
    if value is None and not required:
        return None
    if not isinstance(value, str) or not value:
        raise refuse("invalid_value", f"{name} must be a non-empty string", param=name)
    return value


def _load_wish(body: dict[str, Any]) -> dict[str, Any]:
    layers, wait = body.get("total_layers"), body.get("wait", True)
    if layers is not None and type(layers) is not int:
        raise refuse("invalid_value", "total_layers must be an integer", param="total_layers")
    if type(wait) is not bool:
        raise refuse("invalid_value", "wait must be true or false", param="wait")
    return {
        "model_path": _text(body, "model_path", required=True),
        "model_id": _text(body, "model_id"),
        "total_layers": layers,
        "dtype": _text(body, "dtype"),
        "wait": wait,
    }


def _told(told: ModelTold) -> Response:
    if told.refusal is not None:
        raise RefusalError(told.refusal)
    content = {"model_id": told.model_id, "state": told.state}
    if told.state != "loading":
        return json_response(content)
    return json_response(content | {"job": told.job}, 202)


def _job(job: JobStatus) -> dict[str, Any]:
    """Bytes are sums over the nodes of the phase they are in; each node's own follow."""
    return {
        "job": job.job,
        "model_id": job.model_id,
        "model_path": job.model_path,
        "state": job.state,
        "bytes_done": sum(node.bytes_done for node in job.nodes),
        "bytes_total": sum(node.bytes_total for node in job.nodes),
        "nodes": [attrs.asdict(node) for node in job.nodes],
        "error": None if job.refusal is None else body_of(job.refusal)["error"],
    }


def _model(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.model_id,
        "object": "model",
        "created": card.created_s,
        "owned_by": "hydra",
        "root": card.model_path,
        "parent": None,
        "max_model_len": card.max_model_len,
    }


def _status(told: StatusTold) -> dict[str, Any]:
    content = attrs.asdict(told, filter=lambda field, _: field.name not in ("ask", "samples"))
    return {key: list(value) if isinstance(value, tuple) else value for key, value in content.items()}


def prometheus(samples: tuple[Sample, ...]) -> str:
    """The text format; names and labels are ours, so nothing needs escaping."""
    lines: list[str] = []
    described: set[str] = set()
    for sample in samples:
        if sample.name not in described:
            described.add(sample.name)
            lines += [f"# HELP {sample.name} {sample.help}", f"# TYPE {sample.name} {sample.kind}"]
        labels = ",".join(f'{key}="{value}"' for key, value in sample.labels)
        lines.append(f"{sample.name}{{{labels}}} {sample.value:g}" if labels else f"{sample.name} {sample.value:g}")
    return "\n".join(lines) + "\n"


def _add_errors(app: QuartTrio) -> None:
    @app.errorhandler(RefusalError)
    async def refused(why: RefusalError) -> Response:
        status, headers = status_of(why.refusal)
        return json_response(body_of(why.refusal), status, headers)

    @app.errorhandler(HTTPException)
    async def http_error(why: HTTPException) -> Response:
        status = why.code or 500
        kind = "invalid_request_error" if status < 500 else "server_error"
        code = {408: "request_timeout", 413: "too_large"}.get(status, why.name.lower().replace(" ", "_"))
        return json_response(error_body(why.description or why.name, kind, None, code), status)

    @app.errorhandler(Exception)
    async def bug(why: Exception) -> Response:
        found = _refusal_in(why)
        if found is not None:
            return await refused(found)
        log.error("a request failed", exc_info=why)
        return json_response(error_body("internal error", "server_error", None, "internal_error"), 500)


def _refusal_in(why: BaseException) -> RefusalError | None:
    """Nurseries wrap what is raised in them."""
    while isinstance(why, BaseExceptionGroup) and len(why.exceptions) == 1:
        why = why.exceptions[0]
    return why if isinstance(why, RefusalError) else None
