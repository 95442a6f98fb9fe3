"""A model's bytes from other machines of the cluster: a RangeSource over the store lane.

Promises: a range comes whole and in order from one of the addresses, or a fault says why not. Whoever fails is asked
last for a while, so that the next try begins with somebody else. No wait is longer than `silence_s`. Refuses to know
sockets, and who the addresses are.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing

import attrs

from hydra.protocol.faults import TheyBrokeTheRules, WireError
from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.range_window import RangeWindow
from hydra.protocol.refusal import Refusal
from hydra.protocol.store_lane import ChunkRefused, decode_answer, encode_ask
from hydra.protocol.wires.wire import BlockingStoreLine
from hydra.store.cache.range_source import SourceFault, SourceUnfit

LANE = "lane:"
SILENCE_S = 15.0  # longer than a server may take for a chunk, and than a stopped one keeps its connection
SHUNNED_S = 10.0


@attrs.define(eq=False)
class LaneSource:
    """All who may hold one model. Several threads may read at once; each transfer has a line of its own.

    `addrs` are tcp://HOST:PORT, best first. `open_line` connects without waiting.
    """

    addrs: Sequence[str]
    fingerprint: str
    open_line: Callable[[str], BlockingStoreLine]
    auth: str = attrs.field(default="", repr=False)
    silence_s: float = SILENCE_S
    now: Callable[[], float] = time.monotonic
    _shunned_until: dict[str, float] = attrs.field(factory=dict, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    @property
    def name(self) -> str:
        return LANE + ",".join(self.addrs)

    def read(self, file: str, offset: int, length: int) -> Iterator[bytes]:
        """Implements RangeSource. An address that does not hold the bytes is passed over at once.

        Raises SourceUnfit when none of them does, SourceFault when one that may hold them could not be heard.
        """
        reasons: list[str] = []
        done, may_hold = 0, False
        for addr in self._in_order():
            try:
                with closing(self._read_from(addr, file, offset + done, length - done)) as pieces:
                    for piece in pieces:
                        done += len(piece)
                        yield piece
                return
            except SourceUnfit as why:
                reasons.append(f"{addr}: {why}")
            except SourceFault as why:
                reasons.append(f"{addr}: {why}")
                may_hold = True
                self._shun(addr)
        told = "; ".join(reasons) or "nobody to ask"
        raise SourceFault(told) if may_hold else SourceUnfit(told)

    def _read_from(self, addr: str, file: str, offset: int, length: int) -> Generator[bytes, None, None]:
        """One line, one window. Raises SourceUnfit and SourceFault."""
        if not addr.startswith("tcp://"):
            raise SourceUnfit("no address of another machine")  # whoever said so chooses no socket file of ours
        window = RangeWindow(self.auth, self.fingerprint, file, offset, length)
        try:
            with closing(self.open_line(addr)) as line:
                while not window.over:
                    for ask in window.asks():
                        line.send(encode_ask(ask))
                    frames = line.receive(self.silence_s)
                    if frames is None:
                        raise SourceFault(f"silent for {self.silence_s:g} s")
                    answer = decode_answer(frames)
                    if isinstance(answer, ChunkRefused):
                        raise _fault(answer.refusal)
                    for piece in window.take(answer):
                        yield bytes(piece)
        except TheyBrokeTheRules as why:
            raise SourceUnfit(str(why)) from why
        except WireError as why:
            raise SourceFault(str(why)) from why

    def _in_order(self) -> list[str]:
        """As given, save that those who failed of late come last."""
        now_s = self.now()
        with self._lock:
            return sorted(self.addrs, key=lambda addr: self._shunned_until.get(addr, 0.0) > now_s)

    def _shun(self, addr: str) -> None:
        with self._lock:
            self._shunned_until[addr] = self.now() + SHUNNED_S


def lane_opener(open_line: Callable[[str], BlockingStoreLine], auth: str) -> Mapping[str, Callable[..., LaneSource]]:
    """Opens `lane:tcp://HOST:PORT,...` for a StoreSupply."""

    def open_lane(name: str, order: LoadSlice) -> LaneSource:
        return LaneSource(name.removeprefix(LANE).split(","), order.spec.fingerprint, open_line, auth)

    return {LANE: open_lane}


def _fault(refusal: Refusal) -> SourceFault:
    told = f"{refusal.code}: {refusal.message}"
    if refusal.code == "timeout":
        return SourceFault(told, retry_after_s=refusal.retry_after_s)
    return SourceUnfit(told)
