"""One table: from our refusals to HTTP statuses and OpenAI error bodies. All four keys, always; never a traceback."""

from typing import Any

from hydra.protocol.refusal import Refusal, RefusalCode

STATUS: dict[RefusalCode, tuple[int, str]] = {
    "invalid_json": (400, "invalid_request_error"),
    "invalid_value": (400, "invalid_request_error"),
    "context_length_exceeded": (400, "invalid_request_error"),
    "unsupported": (400, "invalid_request_error"),
    "bad_model": (400, "invalid_request_error"),
    "unauthorized": (401, "authentication_error"),
    "access_denied": (403, "permission_error"),
    "model_not_found": (404, "invalid_request_error"),
    "job_not_found": (404, "invalid_request_error"),
    "cancelled": (409, "invalid_request_error"),
    "timeout": (408, "timeout_error"),
    "queue_full": (429, "rate_limit_error"),
    "replay_limit": (500, "server_error"),
    "not_finite": (500, "server_error"),
    "internal_error": (500, "server_error"),
    "version_mismatch": (500, "server_error"),
    "unreachable": (500, "server_error"),
    "does_not_fit": (503, "server_error"),
    "no_workers": (503, "server_error"),
    "loading": (503, "server_error"),
    "recovery_deadline": (503, "server_error"),
    "shutting_down": (503, "server_error"),
    "source_unreachable": (503, "server_error"),
}


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def body_of(refusal: Refusal) -> dict[str, Any]:
    return error_body(refusal.message, STATUS[refusal.code][1], refusal.param, refusal.code)


def status_of(refusal: Refusal) -> tuple[int, dict[str, str]]:
    """The status, and the headers that go with it."""
    status = STATUS[refusal.code][0]
    if status not in (429, 503):
        return status, {}
    return status, {"Retry-After": str(max(1, round(refusal.retry_after_s or 1.0)))}
