"""A range from other machines: whole and in order, from whoever holds it, in spite of those who do not."""

from collections import deque

import attrs
import pytest

from hydra.protocol.endpoint import Endpoint
from hydra.protocol.range_window import OPEN_MAX, WINDOW_CHUNK_BYTES
from hydra.protocol.refusal import Refusal
from hydra.protocol.store_lane import ChunkRefused, ChunkReply, decode_ask, encode_answer
from hydra.protocol.wires.wire import LineBroken, WireFull
from hydra.store.cache.range_source import SourceFault, SourceUnfit
from hydra.store.lending.lane_source import SHUNNED_S, LaneSource

FILE = bytes(range(251)) * (5 * WINDOW_CHUNK_BYTES // 251)
LENGTH = len(FILE)
A, B, C = map(Endpoint, ("tcp://a:1", "tcp://b:1", "tcp://c:1"))


def holds(ask):
    data = FILE[ask.offset : ask.offset + ask.length]
    return encode_answer(ChunkReply(number=ask.number, file_bytes=len(FILE), data=data))


def refuses(code):
    refusal = Refusal(code=code, message="not from here", retry_after_s=3.0)
    return lambda ask: encode_answer(ChunkRefused(number=ask.number, refusal=refusal))


def breaks(ask):
    raise LineBroken("gone")


def silent(ask):
    return None


def lies(ask):
    return encode_answer(ChunkReply(number=ask.number, file_bytes=len(FILE), data=b"short"))


def babbles(ask):
    return [b"\xc1"]


def after(n_chunks, then):
    """Holds the file for so many chunks."""
    left = [n_chunks]

    def answer(ask):
        left[0] -= 1
        return holds(ask) if left[0] >= 0 else then(ask)

    return answer


@attrs.define
class Line:
    """One connection to one pretended machine."""

    world: "World"
    addr: str
    answers: deque = attrs.field(factory=deque)
    closed: bool = False

    def send(self, frames):
        ask = decode_ask(frames)
        assert ask.auth == "token" and ask.fingerprint == "print"
        self.world.asked.append((self.addr, ask.offset, ask.length))
        self.answers.append(ask)
        assert len(self.answers) <= OPEN_MAX

    def receive(self, timeout_s):
        assert timeout_s == 15.0
        return self.world.machines[self.addr](self.answers.popleft())

    def close(self):
        self.closed = True


@attrs.define
class World:
    machines: dict
    asked: list = attrs.field(factory=list)
    lines: list = attrs.field(factory=list)
    now_s: float = 100.0

    def open_line(self, addr):
        self.lines.append(Line(self, addr))
        return self.lines[-1]

    def source(self):
        return LaneSource(list(self.machines), "print", self.open_line, "token", now=lambda: self.now_s)

    def of(self, addr):
        """The bytes asked of one machine, as offset and length."""
        return [(offset, length) for asked, offset, length in self.asked if asked == addr]


def read(source, offset=0, length=LENGTH):
    return b"".join(source.read("file", offset, length))


@pytest.mark.parametrize(
    ("offset", "length"), [(0, len(FILE)), (17, WINDOW_CHUNK_BYTES), (3, 1), (5, 0), (len(FILE) - 9, 9)]
)
def test_a_range_comes_whole(offset, length):
    world = World({A: holds})
    assert read(world.source(), offset, length) == FILE[offset : offset + length]
    assert sum(length for _, length in world.of(A)) == length
    assert all(line.closed for line in world.lines)


@pytest.mark.parametrize("code", ["model_not_found", "invalid_value", "bad_model", "unauthorized"])
def test_whoever_refuses_is_passed_over_and_asked_again_next_time(code):
    world = World({A: refuses(code), B: holds})
    source = world.source()
    assert read(source) == FILE
    assert read(source, 0, 10) == FILE[:10]
    assert world.of(A)[-1] == (0, 10)


@pytest.mark.parametrize("fault", [breaks, silent, refuses("timeout")])
def test_a_transfer_that_ends_in_the_middle_goes_on_elsewhere_at_the_same_byte(fault):
    world = World({A: after(2, fault), B: holds})
    assert read(world.source()) == FILE
    assert world.of(B)[0][0] == 2 * WINDOW_CHUNK_BYTES
    fetched = 2 * WINDOW_CHUNK_BYTES + sum(length for _, length in world.of(B))
    assert fetched == len(FILE)


@pytest.mark.parametrize("fault", [lies, babbles])
def test_whoever_breaks_the_rules_is_left(fault):
    world = World({A: fault, B: holds})
    assert read(world.source()) == FILE
    with pytest.raises(SourceUnfit):
        read(World({A: fault}).source())


def test_whoever_failed_is_asked_last_for_a_while():
    world = World({A: breaks, B: holds})
    source = world.source()
    read(source, 0, 10)
    world.machines[A] = holds
    world.asked.clear()
    read(source, 0, 10)
    assert [addr for addr, *_ in world.asked] == [B]
    world.now_s += SHUNNED_S + 1
    world.asked.clear()
    read(source, 0, 10)
    assert [addr for addr, *_ in world.asked] == [A]


def test_when_only_one_is_left_it_is_asked_although_it_failed():
    world = World({A: after(1, breaks)})
    source = world.source()
    got = []
    with pytest.raises(SourceFault) as caught:
        for piece in source.read("file", 0, len(FILE)):
            got.append(piece)
    assert not isinstance(caught.value, SourceUnfit)
    assert b"".join(got) == FILE[:WINDOW_CHUNK_BYTES]
    world.machines[A] = holds
    assert read(source, WINDOW_CHUNK_BYTES, len(FILE) - WINDOW_CHUNK_BYTES) == FILE[WINDOW_CHUNK_BYTES:]


def test_nobody_holds_it_is_unfit_and_somebody_may_is_a_fault():
    with pytest.raises(SourceUnfit):
        read(World({A: refuses("model_not_found"), B: refuses("invalid_value")}).source())
    with pytest.raises(SourceFault) as caught:
        read(World({A: breaks, B: refuses("model_not_found")}).source())
    assert not isinstance(caught.value, SourceUnfit)
    assert A.addr in str(caught.value) and B.addr in str(caught.value) and "not from here" in str(caught.value)
    with pytest.raises(SourceUnfit):
        read(World({}).source())


def test_a_line_that_cannot_be_opened_or_takes_nothing_is_a_fault():
    class Full(Line):
        def send(self, frames):
            raise WireFull("full")

    world = World({A: holds})
    source = LaneSource([A], "print", lambda addr: Full(world, addr), "token")
    with pytest.raises(SourceFault):
        read(source)


def test_a_consumer_that_has_enough_ends_the_transfer():
    world = World({A: holds})
    pieces = world.source().read("file", 0, len(FILE))
    next(pieces)
    pieces.close()
    assert all(line.closed for line in world.lines)
    assert len(world.asked) <= OPEN_MAX


def test_its_token_is_not_shown():
    assert "token" not in repr(World({A: holds}).source())
