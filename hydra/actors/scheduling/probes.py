"""Can a request be served now? A probe token through every stage proves it, one for all who ask meanwhile.

It remembers who asked and writes the probe; the Broker opens it like any other generation and says how it ended.
"""

import attrs

from hydra.actors.core.machine import CancelTimer, Effect, Send, SetTimer
from hydra.actors.core.names import PROBE_PEER
from hydra.actors.scheduling.row import RowKey
from hydra.protocol.batch import int32
from hydra.protocol.ids import Address, AskId, Attempt, SessionId
from hydra.protocol.messages.generations import Open
from hydra.protocol.messages.models import ReadyReply
from hydra.protocol.sampling import GREEDY

READY_FOR_S = 30.0  # a token so recent proves that the route works
PROBE_DEADLINE_S = 10.0
ASK_AGAIN_S = 2.0


def ready_told(asker: Address, ask: AskId, reason: str = "") -> Send:
    """Without a reason against it: ready."""
    retry_after_s = ASK_AGAIN_S if reason else None
    return Send(asker, ReadyReply(ask=ask, ready=not reason, why=reason, retry_after_s=retry_after_s))


@attrs.define(eq=False)
class Probe:
    """A token under way that is to prove one model's route, and everybody who waits for it."""

    model_id: str
    askers: list[tuple[Address, AskId]]


@attrs.define(eq=False)
class Probes:
    """Probes under way, at most one of a model."""

    _under_way: dict[SessionId, Probe] = attrs.field(factory=dict, init=False)
    _next: int = attrs.field(default=1, init=False)

    def join(self, asker: Address, ask: AskId, model_id: str) -> bool:
        """Waits for this model's probe if one is under way; False when none is."""
        probe = next((probe for probe in self._under_way.values() if probe.model_id == model_id), None)
        if probe is None:
            return False
        probe.askers.append((asker, ask))
        return True

    def start(self, asker: Address, ask: AskId, model_id: str) -> tuple[RowKey, Open]:
        """A new probe, to be opened by the caller with `deadline`."""
        session = SessionId(self._next)
        self._next += 1
        self._under_way[session] = Probe(model_id, [(asker, ask)])
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

    def check(self) -> None:
        """One probe of a model at a time, each with somebody who waits for it. Raises AssertionError."""
        models = [probe.model_id for probe in self._under_way.values()]
        assert len(set(models)) == len(models), f"two probes of one model: {models}"
        assert all(probe.askers for probe in self._under_way.values()), "a probe that nobody waits for"
        assert all(session < self._next for session in self._under_way), "a probe that was never numbered"

    def deadline(self, key: RowKey, now_s: float) -> SetTimer:
        return SetTimer(("probe", key.session), now_s + PROBE_DEADLINE_S)

    def end(self, session: SessionId, reason: str = "") -> list[Effect]:
        """All who waited are told: ready, or the reason why not."""
        probe = self._under_way.pop(session, None)
        replies: list[Effect] = [ready_told(asker, ask, reason) for asker, ask in (probe.askers if probe else ())]
        return [*replies, CancelTimer(("probe", session))]
