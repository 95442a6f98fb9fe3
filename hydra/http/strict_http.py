"""HTTP/1 as h11 reads it, without what two readers could understand differently. Knows bytes, and no connection.

h11 takes lines that end in LF alone, headers folded over two lines, a length beside a transfer encoding and versions
that do not exist. A proxy in front of us may cut such bytes into other requests than we do, so they are refused.
"""

from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer  # where the lines of a head are still bytes; h11 has no other place

VERSIONS = (b"1.0", b"1.1")
FRAMING = (b"content-length", b"transfer-encoding")


class StrictLines(ReceiveBuffer):
    """What has been received. Heads and trailers leave it as lines."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """Raises LocalProtocolError, which h11 turns into a refusal of the peer's bytes."""
        end = self._data.find(b"\r\n\r\n")
        head = self._data[: len(self._data) if end < 0 else end + 2]
        if head.count(b"\n") != head.count(b"\r\n"):
            raise h11.LocalProtocolError("a line of the head ends in LF alone; lines end in CR LF")
        lines: list[bytearray] | None = super().maybe_extract_lines()
        if lines is not None:
            _check_lines(lines)
        return lines


def _check_lines(lines: list[bytearray]) -> None:
    framing: list[bytes] = []
    for line in lines:
        if line.startswith((b" ", b"\t")):
            raise h11.LocalProtocolError("a header is folded over two lines; write it in one")
        name = bytes(line.partition(b":")[0]).lower()
        if name in FRAMING:
            framing.append(name)
    if len(framing) > 1:
        names = " and ".join(name.decode() for name in framing)
        raise h11.LocalProtocolError(f"{names} in one request: how long the body is must be said once")


class StrictConnection(h11.Connection):
    """The server's side of a connection. `fault` says what was wrong with the bytes, once something was."""

    def __init__(self, head_bytes_max: int) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=head_bytes_max)
        self._receive_buffer = StrictLines()
        self.fault = ""

    def next_event(self) -> Any:
        """Raises RemoteProtocolError."""
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                _check_request(event)
        except h11.RemoteProtocolError as error:
            self.fault = str(error)
            raise
        return event


def _check_request(request: h11.Request) -> None:
    if request.http_version not in VERSIONS:
        version = request.http_version.decode()
        raise h11.RemoteProtocolError(f"HTTP/{version} is not spoken here; HTTP/1.1 is", error_status_hint=505)
    if request.http_version == b"1.0" and any(name == b"transfer-encoding" for name, _ in request.headers):
        raise h11.RemoteProtocolError("HTTP/1.0 has no transfer-encoding; send a content-length")
