"""The ASGI app: all routes, and what stands around them. Errors are OpenAI's, with all four keys."""

import structlog
import trio
from quart import Response
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from hydra.actors.client import Cluster
from hydra.http.api import Api, Aside, json_response
from hydra.http.cluster_routes import add_cluster_routes
from hydra.http.failures import body_of, error_body, status_of
from hydra.http.openai_routes import add_openai_routes
from hydra.http.request_scope import RequestScope
from hydra.http.shutdown import Shutdown
from hydra.http.words_shelf import WordsShelf
from hydra.protocol.refusal import RefusalError

log = structlog.get_logger()


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
    add_openai_routes(app, api)
    add_cluster_routes(app, api)
    _add_errors(app)
    return app


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
