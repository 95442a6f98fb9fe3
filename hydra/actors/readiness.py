"""Can a request be served now? A probe token through every stage proves it, one for all who ask meanwhile.

It remembers who asked and writes the probe; the Broker opens it like any other generation and says how it ended.
"""

import attrs

from hydra.actors.machine import CancelTimer, Effect, Send, SetTimer
from hydra.actors.row import RowKey
from hydra.protocol.batch import int32
from hydra.protocol.ids import Address, AskId, Attempt, PeerId, SessionId
from hydra.protocol.messages import Open, ReadyTold
from hydra.protocol.sampling import GREEDY

READY_FOR_S = 30.0  # a token so recent proves that the route works
PROBE_DEADLINE_S = 10.0
PROBE_PEER = PeerId("(probe)")
ASK_AGAIN_S = 2.0


def ready_told(asker: Address, ask: AskId, reason: str = "") -> Send:
    """Without a reason against it: ready."""
    retry_after_s = ASK_AGAIN_S if reason else None
    return Send(asker, ReadyTold(ask=ask, ready=not reason, why=reason, retry_after_s=retry_after_s))


@attrs.define(eq=False)
class Probes:
    """Probes under way, each with everybody who waits for it."""

    _askers: dict[SessionId, list[tuple[Address, AskId]]] = attrs.field(factory=dict, init=False)
    _next: int = attrs.field(default=1, init=False)

    def join(self, asker: Address, ask: AskId) -> bool:
        """Waits for a probe that is under way; False when there is none."""
        for askers in self._askers.values():
            askers.append((asker, ask))
            return True
        return False

    def start(self, asker: Address, ask: AskId, model_id: str) -> tuple[RowKey, Open]:
        """A new probe, to be opened by the caller with `deadline`."""
        session = SessionId(self._next)
        self._next += 1
        self._askers[session] = [(asker, ask)]
        probe = Open(
            session=session,
            attempt=Attempt(0),
            model_id=model_id,
            history=int32([0]),
            prompt_tokens=1,
            max_tokens=1,
            params=GREEDY,
            stop_ids=(),
        )
        return RowKey(PROBE_PEER, session), probe

    def deadline(self, key: RowKey, now_s: float) -> SetTimer:
        return SetTimer(("probe", key.session), now_s + PROBE_DEADLINE_S)

    def end(self, session: SessionId, reason: str = "") -> list[Effect]:
        """All who waited are told: ready, or the reason why not."""
        told: list[Effect] = [ready_told(asker, ask, reason) for asker, ask in self._askers.pop(session, [])]
        return [*told, CancelTimer(("probe", session))]
