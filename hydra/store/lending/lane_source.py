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

from hydra.protocol.endpoint import Endpoint
from hydra.protocol.faults import TheyBrokeTheRules, WireError
from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.model.source import Peers, Source
from hydra.protocol.range_window import RangeWindow
from hydra.protocol.refusal import Refusal
from hydra.protocol.store_lane import ChunkRefused, decode_answer, encode_ask
from hydra.protocol.wires.wire import BlockingStoreLine
from hydra.store.cache.range_source import SourceFault, SourceUnfit

SILENCE_S = 15.0  # longer than a server may take for a chunk, and than a stopped one keeps its connection
SHUNNED_S = 10.0


@attrs.define(eq=False)
class LaneSource:
    """All who may hold one model. Several threads may read at once; each transfer has a line of its own.

    `endpoints` are at tcp://HOST:PORT, best first. `open_line` connects without waiting.
    """

    endpoints: Sequence[Endpoint]
    fingerprint: str
    open_line: Callable[[Endpoint], BlockingStoreLine]
    auth: str = attrs.field(default="", repr=False)
    silence_s: float = SILENCE_S
    now: Callable[[], float] = time.monotonic
    _shunned_until: dict[Endpoint, float] = attrs.field(factory=dict, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    @property
    def name(self) -> str:
        return str(Peers(tuple(self.endpoints)))

    def read(self, file: str, offset: int, length: int) -> Iterator[bytes]:
        """Implements RangeSource. An address that does not hold the bytes is passed over at once.

        Raises SourceUnfit when none of them does, SourceFault when one that may hold them could not be heard.
        """
        reasons: list[str] = []
        done, may_hold = 0, False
        for endpoint in self._in_order():
            try:
                with closing(self._read_from(endpoint, file, offset + done, length - done)) as pieces:
                    for piece in pieces:
                        done += len(piece)
                        yield piece
                return
            except SourceUnfit as error:
                reasons.append(f"{endpoint}: {error}")
            except SourceFault as error:
                reasons.append(f"{endpoint}: {error}")
                may_hold = True
                self._shun(endpoint)
        reason = "; ".join(reasons) or "nobody to ask"
        raise SourceFault(reason) if may_hold else SourceUnfit(reason)

    def _read_from(self, endpoint: Endpoint, file: str, offset: int, length: int) -> Generator[bytes, None, None]:
        """One line, one window. Raises SourceUnfit and SourceFault."""
        if not endpoint.addr.startswith("tcp://"):
            raise SourceUnfit("no address of another machine")  # whoever said so chooses no socket file of ours
        window = RangeWindow(self.auth, self.fingerprint, file, offset, length)
        try:
            with closing(self.open_line(endpoint)) as line:
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
        except TheyBrokeTheRules as error:
            raise SourceUnfit(str(error)) from error
        except WireError as error:
            raise SourceFault(str(error)) from error

    def _in_order(self) -> list[Endpoint]:
        """As given, save that those who failed of late come last."""
        now_s = self.now()
        with self._lock:
            return sorted(self.endpoints, key=lambda endpoint: self._shunned_until.get(endpoint, 0.0) > now_s)

    def _shun(self, endpoint: Endpoint) -> None:
        with self._lock:
            self._shunned_until[endpoint] = self.now() + SHUNNED_S


def lane_opener(
    open_line: Callable[[Endpoint], BlockingStoreLine], auth: str
) -> Mapping[type[Source], Callable[..., LaneSource]]:
    """Opens Peers for a StoreSupply."""

    def open_lane(peers: Peers, order: LoadSlice) -> LaneSource:
        return LaneSource(peers.endpoints, order.spec.fingerprint, open_line, auth)

    return {Peers: open_lane}


def _fault(refusal: Refusal) -> SourceFault:
    reason = f"{refusal.code}: {refusal.message}"
    if refusal.code == "timeout":
        return SourceFault(reason, retry_after_s=refusal.retry_after_s)
    return SourceUnfit(reason)
