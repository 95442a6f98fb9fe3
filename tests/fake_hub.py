"""A small Hub on loopback: the routes that huggingface_hub and Hydra use, with faults on demand, and a ledger.

The ledger notes every body of a weights file that went out, as (path, first byte, bytes sent). It promises nothing
about speed and keeps repositories in memory, one commit each.
"""

import hashlib
import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import attrs
import numpy as np
from numpy.typing import NDArray

PIECE_BYTES = 64 << 10
PORTAL = b"<!DOCTYPE html><html><body>Please log in to this network." + b" " * 5000 + b"</body></html>"


@attrs.frozen
class Asked:
    """One request for a weights file, as a fault may look at it."""

    path: str
    start: int
    number: int  # of requests for this file so far, from 1


@attrs.frozen
class Fault:
    """What goes wrong with a request: a status instead of an answer, a body cut after some bytes, a slow body."""

    status: int = 0
    headers: dict[str, str] = attrs.field(factory=dict)
    cut_after: int | None = None
    pause_s: float = 0.0  # before every piece of the body


@attrs.define(eq=False)
class FakeHub:
    """Everything a test may turn. `fault` is asked for each request for a weights file; None: all is well."""

    repos: dict[str, dict[str, bytes]] = attrs.field(factory=dict)
    fault: Callable[[Asked], Fault | None] = lambda asked: None
    api_fault: Callable[[int], Fault | None] = lambda number: None
    token: str = ""  # when set, only who shows it gets anything
    denied_status: int = 403
    ranges: bool = True  # False: Range is ignored
    lie_size: int = 0  # added to the size that Content-Range tells
    tags: dict[str, str] = attrs.field(factory=dict)  # ETags that are not those of the listing
    portal: dict[str, str] | None = None  # headers of the page that a network answers everything with, weights too
    redirect_to: str = ""  # weights are handed out by this other host
    bodies: list[list[Any]] = attrs.field(factory=list)  # the ledger: [path, first byte, bytes that went out]
    requests: list[tuple[str, str, str]] = attrs.field(factory=list)  # (method, path, Range)
    authorized: list[tuple[str, str]] = attrs.field(factory=list)  # (path, Authorization)
    url: str = ""
    went_out: Callable[[int], None] = lambda n_bytes: None  # after every piece of a weights file
    _counts: Counter[str] = attrs.field(factory=Counter, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def add(self, repo: str, directory: Path) -> str:
        """Publishes a directory; its commit follows from the content."""
        paths = [path for path in sorted(directory.rglob("*")) if path.is_file()]
        self.repos[repo] = {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}
        return self.commit(repo)

    def commit(self, repo: str) -> str:
        files = self.repos[repo]
        return hashlib.sha1(b"".join(name.encode() + hashlib.sha1(files[name]).digest() for name in files)).hexdigest()

    def listed(self, repo: str) -> list[dict[str, object]]:
        return [_entry(name, content) for name, content in self.repos[repo].items()]

    def count(self, what: str) -> int:
        with self._lock:
            self._counts[what] += 1
            return self._counts[what]

    @property
    def sent(self) -> list[tuple[str, int, int]]:
        return [(path, start, sent) for path, start, sent in self.bodies]

    def times_sent(self, file: str, size: int) -> NDArray[np.int64]:
        """For each byte of a file how often it went out."""
        steps = np.zeros(size + 1, np.int64)
        for path, start, length in self.sent:
            if path.endswith("/" + file):
                steps[start] += 1
                steps[start + length] -= 1
        return np.cumsum(steps)[:-1]


def tag_of(content: bytes, name: str) -> str:
    """As the Hub has it: SHA-256 of large files, git's blob id of small ones."""
    if name.endswith((".safetensors", ".gguf")):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(name: str, content: bytes) -> dict[str, object]:
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": oid}
    if name.endswith((".safetensors", ".gguf")):
        entry["lfs"] = {"oid": tag_of(content, name), "size": len(content), "pointerSize": 134}
    return entry


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        hub, authorization = self.hub, self.headers.get("Authorization", "")
        hub.requests.append((self.command, path, self.headers.get("Range", "")))
        hub.authorized.append((path, authorization))
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path)
        if hub.portal is not None:
            self._head(200, {"Connection": "close", **hub.portal})
            self.close_connection = True
            if body:
                self.wfile.write(PORTAL)
        elif hub.token and authorization != f"Bearer {hub.token}":
            self._say(hub.denied_status, {}, {"X-Error-Code": "GatedRepo"})
        elif found is not None:
            self._api(found[1], found[2], found[3] or "main")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[2], found[3], body=body)
        else:
            self._say(404, {})

    def _known(self, repo: str, revision: str) -> bool:
        if repo not in self.hub.repos:
            self._say(404, {}, {"X-Error-Code": "RepoNotFound"})
            return False
        if revision not in ("main", self.hub.commit(repo)):
            self._say(404, {}, {"X-Error-Code": "RevisionNotFound"})
            return False
        return True

    def _api(self, repo: str, kind: str | None, revision: str) -> None:
        fault = self.hub.api_fault(self.hub.count("api"))
        if fault is not None:
            self._say(fault.status, {}, fault.headers)
        elif self._known(repo, revision):
            told = {"id": repo, "sha": self.hub.commit(repo), "siblings": []}
            self._say(200, self.hub.listed(repo) if kind == "tree" else told)

    def _file(self, repo: str, revision: str, name: str, *, body: bool) -> None:
        if not self._known(repo, revision):
            return
        content = self.hub.repos[repo].get(name)
        if content is None:
            self._say(404, {}, {"X-Error-Code": "EntryNotFound"})
            return
        tag = self.hub.tags.get(name, tag_of(content, name))
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": self.hub.commit(repo)}
        weights = name.endswith((".safetensors", ".gguf"))
        if weights and self.hub.redirect_to:
            headers |= {"X-Linked-ETag": headers.pop("ETag"), "X-Linked-Size": str(len(content))}
            self._head(302, headers | {"Location": self.hub.redirect_to + self.path, "Content-Length": "0"})
            return
        self._send(name, content, headers, body=body, weights=weights)

    def _send(self, name: str, content: bytes, headers: dict[str, str], *, body: bool, weights: bool) -> None:
        start, end, status = 0, len(content), 200
        if self.hub.ranges and (found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))):
            start, end, status = int(found[1]), min(int(found[2]) + 1, len(content)), 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content) + self.hub.lie_size}"
        fault = self.hub.fault(Asked(name, start, self.hub.count(name))) if weights and body else None
        if fault is not None and fault.status:
            self._say(fault.status, {}, fault.headers)
            return
        self._head(status, headers | {"Content-Length": str(end - start), "Accept-Ranges": "bytes"})
        if body:
            self._body(memoryview(content)[start:end], start, fault or Fault(), weights=weights)

    def _body(self, content: memoryview, start: int, fault: Fault, *, weights: bool) -> None:
        """Each piece is in the ledger before it goes out, so that who has read it finds it there."""
        entry, sent = [unquote(self.path), start, 0], 0
        if weights:
            self.hub.bodies.append(entry)
        last = len(content) if fault.cut_after is None else min(len(content), fault.cut_after)
        try:
            while sent < last:
                if fault.pause_s:
                    time.sleep(fault.pause_s)
                piece = content[sent : min(sent + PIECE_BYTES, last)]
                sent += len(piece)
                entry[2] = sent
                self.wfile.write(piece)
                if weights:
                    self.hub.went_out(len(piece))
        except OSError:
            self.close_connection = True  # the reader has gone
        if last < len(content):
            self.close_connection = True

    def _say(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        raw = json.dumps(content).encode()
        self._head(status, {"Content-Type": "application/json", "Content-Length": str(len(raw)), **(headers or {})})
        if self.command == "GET":
            self.wfile.write(raw)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is what tests are about; anything else is a fault of this file."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A Hub that listens, with nothing in it."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
