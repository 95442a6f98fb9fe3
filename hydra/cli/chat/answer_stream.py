"""An answer of a running cluster as it is written, over a streaming chat completion.

Promises: a stream of events ends with AnswerEnded or AnswerFailed, and nothing is raised for what the cluster or the
line to it does; closing it closes the connection, and the cluster computes no more of that answer. Pings, with which a
pause is filled, are nothing. Refuses to know what is asked, and who reads.
"""

import json
from collections.abc import Generator, Mapping
from typing import Any

from hydra.cli.chat.conversation import (
    AnswerEnded,
    AnswerFailed,
    AnswerPiece,
    ChatEvent,
    ModelsListed,
    ModelsUnknown,
)
from hydra.cli.cluster_client import (
    CONNECT_S,
    FOLLOW_SILENT_S,
    ClusterRefusal,
    ask_cluster,
    check_stream,
    reaching,
)
from hydra.complaint import Complaint

PATH = "/v1/chat/completions"
DATA, DONE = "data: ", "[DONE]"
EXIT_USAGE, EXIT_UNREACHABLE = 2, 5
# Of a refused request; for other codes what any command makes of them.
EXITS = {
    "invalid_value": EXIT_USAGE,
    "context_length_exceeded": EXIT_USAGE,
    "unsupported": EXIT_USAGE,
    "no_workers": 3,
    "loading": EXIT_UNREACHABLE,
    "queue_full": EXIT_UNREACHABLE,
    "recovery_deadline": EXIT_UNREACHABLE,
    "shutting_down": EXIT_UNREACHABLE,
    "timeout": EXIT_UNREACHABLE,
}


def stream_answer(url: str, body: Mapping[str, Any]) -> Generator[ChatEvent, None, None]:
    """AnswerPiece as they come, and how it ended."""
    import httpx2  # dear, and most commands ask nobody

    finish_reason = ""
    timeout = httpx2.Timeout(FOLLOW_SILENT_S, connect=CONNECT_S)
    try:
        with reaching(url), httpx2.stream("POST", url.rstrip("/") + PATH, json=body, timeout=timeout) as answer:
            check_stream(url, answer)
            for line in answer.iter_lines():
                if line.startswith(DATA) and line != DATA + DONE:
                    text, reason = read_chat_chunk(url, line.removeprefix(DATA))
                    finish_reason = reason or finish_reason
                    if text:
                        yield AnswerPiece(text)
    except Complaint as complaint:
        yield as_failure(complaint)
        return
    if finish_reason:
        yield AnswerEnded(finish_reason)
    else:
        yield AnswerFailed(message="the answer broke off", code="broken_off", exit_code=EXIT_UNREACHABLE)


def read_chat_chunk(url: str, data: str) -> tuple[str, str]:
    """Its text, and why the answer is over; each may be empty. Raises Complaint."""
    try:
        chunk = json.loads(data)
        if "error" in chunk:
            raise ClusterRefusal(dict(chunk["error"]), None)
        choice = chunk["choices"][0]
        text, reason = choice["delta"].get("content") or "", choice["finish_reason"] or ""
        if type(text) is not str or type(reason) is not str:
            raise TypeError("texts are expected")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Complaint(f"{url} is no Hydra", "what it streams is no answer", "choose another with --url", 5) from error
    return text, reason


def list_models(url: str, wanted: str = "") -> ModelsListed | ModelsUnknown:
    try:
        return ModelsListed(models=served_models(url), wanted=wanted)
    except Complaint as complaint:
        return ModelsUnknown(as_failure(complaint))


def served_models(url: str) -> tuple[str, ...]:
    """The ids of all models that can be asked. Raises Complaint."""
    content = ask_cluster("GET", url, "/v1/models")
    try:
        return tuple(str(model["id"]) for model in content["data"])
    except (LookupError, TypeError) as error:
        raise Complaint(f"{url} is no Hydra", "it lists no models", "choose another with --url", 5) from error


def as_failure(complaint: Complaint) -> AnswerFailed:
    if not isinstance(complaint, ClusterRefusal):
        message = f"{complaint.what}: {complaint.cause}"
        return AnswerFailed(message=message, code="unreachable", exit_code=complaint.exit_code, remedy=complaint.fix)
    remedy = f"try again in {complaint.retry_after_s} s" if complaint.retry_after_s else ""
    exit_code = EXITS.get(complaint.code, complaint.exit_code)
    return AnswerFailed(message=complaint.what, code=complaint.code, exit_code=exit_code, remedy=remedy)
