"""One question to a running cluster over its HTTP API, and its "no" as a Complaint. Knows no command."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hydra.cli.terminal_text import without_controls
from hydra.complaint import Complaint

if TYPE_CHECKING:
    import httpx2

LOAD_WAIT_S = 3600.0  # a load that is waited for
CONNECT_S = 5.0
FOLLOW_SILENT_S = 60.0  # a stream of events pings four times as often
STATUS_EXIT = {401: 6, 403: 6, 404: 7}
CODE_EXIT = {"does_not_fit": 3, "source_unreachable": 4}


class ClusterRefusal(Complaint):
    """What the cluster itself answered instead. `error` is OpenAI's object, `status` None inside a stream that had
    begun; `retry_after_s` as the cluster wrote it.
    """

    def __init__(self, error: Mapping[str, Any], status: int | None, retry_after_s: str = "") -> None:
        self.code = str(error.get("code") or "")
        exit_code = CODE_EXIT.get(self.code, STATUS_EXIT.get(status or 0, 1))
        cause = f"the cluster answered {status}" if status else "the cluster ended the answer so"
        super().__init__(without_controls(str(error.get("message"))), cause, "see above", exit_code)
        self.retry_after_s = retry_after_s


def ask_cluster(method: str, url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """The answer's JSON. Raises Complaint: 2 for the URL, 5 when nobody of ours answers, else what the answer means."""
    import httpx2  # dear, and most commands ask nobody

    with reaching(url):
        timeout = httpx2.Timeout(LOAD_WAIT_S, connect=CONNECT_S)
        answer = httpx2.request(method, url.rstrip("/") + path, json=body, timeout=timeout)
    return content_of(url, answer)


def follow_events(url: str, path: str, last_id: str) -> Iterator[dict[str, Any]]:
    """The data of server-sent events behind the one with `last_id`, until the connection ends. Raises Complaint as
    `ask` does.
    """
    import httpx2

    headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_id} if last_id else {})}
    timeout = httpx2.Timeout(FOLLOW_SILENT_S, connect=CONNECT_S)
    with reaching(url), httpx2.stream("GET", url.rstrip("/") + path, headers=headers, timeout=timeout) as answer:
        check_stream(url, answer)
        for line in answer.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line[6:])


def check_stream(url: str, answer: "httpx2.Response") -> None:
    """That it is a stream of events. Raises Complaint with what it is instead."""
    if not answer.headers.get("content-type", "").startswith("text/event-stream"):
        answer.read()
        content_of(url, answer)
        raise Complaint(f"{url} has no events to follow", "it answered without a stream", "is it this version?", 5)


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """What a client raises, as a Complaint."""
    import httpx2

    try:
        yield
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise Complaint(
            f"--url {url!r} is no address", str(error), "for example --url http://127.0.0.1:8080", 2
        ) from error
    except httpx2.TransportError as error:
        cause = str(error) or type(error).__name__
        raise Complaint(f"cannot reach {url}", cause, "is it up? choose another with --url", 5) from error


def content_of(url: str, answer: "httpx2.Response") -> Any:
    """Its JSON. Raises Complaint, of which a ClusterRefusal is the cluster's own."""
    try:
        content = answer.json()
        refusal = None if answer.is_success else dict(content["error"])
    except (ValueError, LookupError, TypeError) as error:
        cause = f"HTTP {answer.status_code} of {answer.headers.get('content-type', 'no type')} is no answer of Hydra's"
        raise Complaint(f"{url} is no Hydra", cause, "choose another with --url", 5) from error
    if refusal is None:
        return content
    raise ClusterRefusal(refusal, answer.status_code, answer.headers.get("retry-after", ""))
