"""One byte range on its way over the store lane: what to ask for now, and what has come, in order.

Pure: it neither waits nor sends. At most `open_max` questions are open at a time, so that a slow asker never makes the
answering side queue. Answers may come in any order and twice; bytes leave in order and once. Whoever drives it may be a
thread with a socket or a simulation.
"""

import attrs

from hydra.protocol.blob import Buffer
from hydra.protocol.faults import TheyBrokeTheRules
from hydra.protocol.store_lane import CHUNK_BYTES_MAX, ChunkReply, ChunkRequest

WINDOW_CHUNK_BYTES = 1 << 20  # small enough that a chunk passes a line of 1 Mbit/s before the line is thought dead
OPEN_MAX = 4


@attrs.define
class RangeWindow:
    """Bytes [offset, offset + length) of one file of the model with this fingerprint."""

    auth: str = attrs.field(repr=False)
    fingerprint: str
    file: str
    offset: int
    length: int
    chunk_bytes: int = attrs.field(default=WINDOW_CHUNK_BYTES)
    open_max: int = OPEN_MAX
    _open: dict[int, ChunkRequest] = attrs.field(factory=dict, init=False)
    _early: dict[int, Buffer] = attrs.field(factory=dict, init=False)  # came before a chunk that precedes them
    _next_ask: int = attrs.field(default=0, init=False)
    _next_out: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        assert 0 < self.chunk_bytes <= CHUNK_BYTES_MAX and self.open_max > 0 and self.length >= 0

    @property
    def n_chunks(self) -> int:
        return -(-self.length // self.chunk_bytes)

    @property
    def over(self) -> bool:
        """Every byte was handed on."""
        return self._next_out == self.n_chunks

    def asks(self) -> list[ChunkRequest]:
        """The questions to put now, each once. Chunks that wait for an earlier one count as open."""
        requests: list[ChunkRequest] = []
        while self._next_ask < self.n_chunks and len(self._open) + len(self._early) < self.open_max:
            done = self._next_ask * self.chunk_bytes
            ask = ChunkRequest(
                number=self._next_ask,
                auth=self.auth,
                fingerprint=self.fingerprint,
                file=self.file,
                offset=self.offset + done,
                length=min(self.chunk_bytes, self.length - done),
            )
            self._open[ask.number] = ask
            self._next_ask += 1
            requests.append(ask)
        return requests

    def take(self, reply: ChunkReply) -> list[Buffer]:
        """The bytes that are next in order by now. Raises TheyBrokeTheRules for what does not answer a question."""
        ask = self._open.pop(reply.number, None)
        if ask is None:
            if reply.number < self._next_ask:
                return []  # a second answer to the same question
            raise TheyBrokeTheRules(f"chunk {reply.number} of {self.file} was never asked for")
        if len(reply.data) != ask.length or reply.file_bytes < ask.offset + ask.length:
            raise TheyBrokeTheRules(
                f"{len(reply.data)} bytes of {self.file} came where {ask.length} were asked for at {ask.offset}"
            )
        self._early[reply.number] = reply.data
        ready: list[Buffer] = []
        while self._next_out in self._early:
            ready.append(self._early.pop(self._next_out))
            self._next_out += 1
        return ready
