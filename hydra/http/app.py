"""The ASGI app: all routes, and what stands around them. Errors are OpenAI's, with all four keys."""

import structlog
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import (
    HTTPException,
    MethodNotAllowed,
    NotFound,
    RequestEntityTooLarge,
    UnsupportedMediaType,
)

from hydra.actors.client import Cluster
from hydra.http.api import Api, json_response
from hydra.http.cluster_routes import add_cluster_routes
from hydra.http.disclosure import may_manage, without_paths
from hydra.http.door import Door, NotJson, add_door
from hydra.http.encoders import Encoders
from hydra.http.event_routes import add_event_routes
from hydra.http.failures import body_of, error_body, status_of
from hydra.http.load_trials import LoadTrials
from hydra.http.no_websocket import NoWebsocket
from hydra.http.openai_routes import add_openai_routes
from hydra.http.request_body import RequestBody
from hydra.http.request_id import RequestId
from hydra.http.request_path import RequestPath, shown_path
from hydra.http.request_scope import RequestScope
from hydra.http.shutdown import Shutdown
from hydra.protocol.refusal import RefusalError
from hydra.protocol.settings.server import WhileLoading
from hydra.text.cache import TokenizerCache

log = structlog.get_logger()


def make_app(
    cluster: Cluster,
    *,
    max_body_bytes: int,
    shutdown: Shutdown,
    tokenizers: TokenizerCache,
    trials: LoadTrials | None = None,
    encoders: Encoders | None = None,
    door: Door | None = None,
    while_loading: WhileLoading = "wait",
) -> QuartTrio:
    """The ASGI app over a cluster."""
    app = QuartTrio("hydra")
    app.config["MAX_CONTENT_LENGTH"] = max_body_bytes
    named = RequestId(NoWebsocket(RequestPath(RequestScope(app.asgi_app))))
    app.asgi_app = RequestBody(named, max_body_bytes)  # type: ignore[method-assign]
    api = Api(
        cluster,
        shutdown,
        encoders or Encoders(),
        tokenizers,
        trials or LoadTrials(cluster, tokenizers),
        while_loading,
    )
    add_openai_routes(app, api)
    add_cluster_routes(app, api)
    add_event_routes(app, api)
    add_door(app, door or Door())
    _refuse_encodings(app)
    _add_errors(app)
    return app


def _add_errors(app: QuartTrio) -> None:
    @app.errorhandler(RefusalError)
    async def refused(why: RefusalError) -> Response:
        refusal = why.refusal if may_manage(request.path) else without_paths(why.refusal)
        status, headers = status_of(refusal)
        return json_response(body_of(refusal), status, headers)

    @app.errorhandler(HTTPException)
    async def http_error(why: HTTPException) -> Response:
        status = why.code or 500
        kind = "invalid_request_error" if status < 500 else "server_error"
        code = {408: "request_timeout", 413: "too_large"}.get(status, why.name.lower().replace(" ", "_"))
        message, headers = _explained(why, app.config["MAX_CONTENT_LENGTH"])
        return json_response(error_body(message, kind, None, code), status, headers)

    @app.errorhandler(Exception)
    async def bug(why: Exception) -> Response:
        response = _refusal_in(why)
        if response is not None:
            return await refused(response)
        log.error("a request failed", exc_info=why)
        return json_response(error_body("internal error", "server_error", None, "internal_error"), 500)


def _explained(why: HTTPException, body_max_bytes: int) -> tuple[str, dict[str, str]]:
    """What is wrong and what would be right, and the headers that say so to programs."""
    method, path = request.method, shown_path(request.scope["raw_path"])
    match why:
        case NotFound():
            return f"no route {method} {path}", {}
        case MethodNotAllowed():
            allowed = ", ".join(sorted(why.valid_methods or ()))
            return f"{method} is not possible at {path}; allowed: {allowed}", {"Allow": allowed}
        case RequestEntityTooLarge():
            message = f"the request body is larger than {body_max_bytes} bytes, the limit ([server] max_body_bytes)"
            return message, {}
        case NotJson():
            return why.description or why.name, {"Accept-Post": "application/json"}
        case UnsupportedMediaType():
            return why.description or why.name, {"Accept-Encoding": "identity"}
        case _:
            return why.description or why.name, {}


def _refuse_encodings(app: QuartTrio) -> None:
    """A compressed body is not JSON; its size once unpacked would need a limit of its own."""

    @app.before_request
    async def look() -> None:
        codings = {coding.strip().lower() for coding in request.headers.get("Content-Encoding", "").split(",")}
        if request.method == "POST" and request.routing_exception is None and codings - {"", "identity"}:
            coding = request.headers["Content-Encoding"][:100]
            raise UnsupportedMediaType(
                f"the request body has Content-Encoding {coding!r}, which is not understood here; send it unencoded"
            )


def _refusal_in(why: BaseException) -> RefusalError | None:
    """Nurseries wrap what is raised in them."""
    while isinstance(why, BaseExceptionGroup) and len(why.exceptions) == 1:
        why = why.exceptions[0]
    return why if isinstance(why, RefusalError) else None
