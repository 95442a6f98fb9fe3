"""A small server that speaks as a cluster's OpenAI API does, for one conversation."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import attrs

from tests.unit.cli.served import serving

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"


def piece(text: str, finish: str | None = None) -> bytes:
    delta = {"content": text} if text else {}
    chunk = {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def answer(*texts: str, finish: str = "stop") -> bytes:
    return b"".join([piece(text) for text in texts] + [piece("", finish), DONE])


def error(message: str, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


@attrs.define
class Hanging:
    """A stream that goes no further than `begun`; `left` is set when its reader closes the connection."""

    begun: bytes
    left: threading.Event = attrs.field(factory=threading.Event)


@attrs.define
class ChatServer:
    """`answers` in order: bytes are a stream, a Hanging is one without end, a pair is a status and its JSON."""

    url: str = ""
    models: tuple[str, ...] = ("small", "large")
    answers: list[bytes | Hanging | tuple[int, dict[str, Any]]] = attrs.field(factory=list)
    asked: list[dict[str, Any]] = attrs.field(factory=list)


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    served = ChatServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, "application/json", json.dumps({"data": [{"id": m} for m in served.models]}).encode())

        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            served.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            content = served.answers.pop(0)
            if isinstance(content, Hanging):
                self.reply(200, "text/event-stream; charset=utf-8", content.begun)
                assert self.rfile.read(1) == b""
                content.left.set()
            elif isinstance(content, bytes):
                self.reply(200, "text/event-stream; charset=utf-8", content)
            else:
                self.reply(content[0], "application/json", json.dumps(content[1]).encode())

        def reply(self, status: int, kind: str, body: bytes) -> None:
            """Without a length: the end of the connection is the end of the body."""
            self.send_response(status)
            self.send_header("Content-Type", kind)
            if status in (429, 503):
                self.send_header("Retry-After", "7")
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler) as served.url:
        yield served
