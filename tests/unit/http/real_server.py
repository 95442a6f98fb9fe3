"""The app on a real socket, and how a test reads what comes back byte by byte."""

import json
import socket

import trio

from hydra.http.serve import HttpSettings, serve_app


class Server:
    """A listening server inside the test's own nursery."""

    def __init__(self, nursery, app, shutdown, **settings):
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.shutdown = shutdown
        self.ended = trio.Event()
        self.settings = HttpSettings(fd=self.listening.fileno(), **settings)
        nursery.start_soon(self._run, app)

    async def _run(self, app):
        try:
            await serve_app(app, self.settings, self.shutdown)
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
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
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
