"""The app on a real socket, and how a test reads what comes back byte by byte."""

import json
import socket

import trio

from hydra.http.serve import HttpListener, serve_app
from hydra.protocol.settings.server import ServerSettings


class Server:
    """A listening server inside the test's own nursery."""

    def __init__(self, nursery, app, shutdown, *, drain_timeout=30.0, **more):
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.shutdown = shutdown
        self.ended = trio.Event()
        server = ServerSettings(drain_timeout=drain_timeout)
        self.listener = HttpListener(fd=self.listening.fileno(), server=server, **more)
        nursery.start_soon(self._run, app)

    async def _run(self, app):
        try:
            await serve_app(app, self.listener, self.shutdown)
        finally:
            self.listening.close()
            self.ended.set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    async def connect(self):
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def post(self, body, path="/v1/completions"):
        stream = await self.connect()
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(content)}\r\n\r\n"
        await stream.send_all(head.encode() + content)
        return stream


async def read_until(stream, text):
    seen = b""
    while text not in seen:
        some = await stream.receive_some()
        assert some, f"the connection ended after {seen!r:.300}"
        seen += some
    return seen


async def read_all(stream):
    seen = b""
    while some := await stream.receive_some():
        seen += some
    return seen


class Client:
    """One connection, kept: requests as bytes, answers parsed."""

    def __init__(self, stream):
        self.stream = stream
        self.seen = b""

    async def send(self, method, path, body=b"", headers=(), *, length=None):
        """With `length`, that is what the head claims; None: the body's own."""
        head = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
        if not any(line.lower().startswith("content-type") for line in headers) and (body or length):
            head.append("Content-Type: application/json")
        if not any(line.lower().startswith("transfer-encoding") for line in headers):
            head.append(f"Content-Length: {len(body) if length is None else length}")
        await self.stream.send_all("\r\n".join([*head, "", ""]).encode() + body)

    async def answer(self, *, has_body=True):
        """(status, headers, body); what comes before the final answer is left out."""
        head = (await self._until(b"\r\n\r\n")).decode().split("\r\n")
        status = int(head[0].split()[1])
        if status < 200:
            return await self.answer(has_body=has_body)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = b""
        if has_body and "content-length" in headers:
            body = await self._exactly(int(headers["content-length"]))
        elif has_body and headers.get("transfer-encoding") == "chunked":
            while size := int(await self._until(b"\r\n"), 16):
                body += (await self._exactly(size + 2))[:-2]
            await self._until(b"\r\n")
        return status, headers, body

    async def rest(self):
        return self.seen + await read_all(self.stream)

    async def _until(self, text):
        while text not in self.seen:
            await self._more()
        found, _, self.seen = self.seen.partition(text)
        return found

    async def _exactly(self, n_bytes):
        while len(self.seen) < n_bytes:
            await self._more()
        found, self.seen = self.seen[:n_bytes], self.seen[n_bytes:]
        return found

    async def _more(self):
        some = await self.stream.receive_some()
        assert some, f"the connection ended after {self.seen!r:.300}"
        self.seen += some


def chunked(body, size=10_000):
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])
