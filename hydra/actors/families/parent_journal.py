"""What of a parent's turns belongs into the journal: its children's starts, deaths and ends. It decides nothing."""

from collections.abc import Iterator, Sequence

import attrs

from hydra.actors.core.machine import Effect, Event
from hydra.actors.core.names import PARENT
from hydra.actors.families.supervisor import ChildGone, ChildPlan, ChildStarted, TellDeath, TellGivenUp
from hydra.protocol.ids import ActorName, NodeId
from hydra.protocol.messages.journal import REASON_MAX, JournalEntry, JournalKind, ProcessRole


@attrs.define(eq=False)
class ParentJournal:
    """Of one parent with these children."""

    plans: tuple[ChildPlan, ...]

    def __call__(
        self, actor: ActorName, event: Event, effects: Sequence[Effect], now_s: float
    ) -> Iterator[JournalEntry]:
        if actor != PARENT:
            return
        match event:
            case ChildStarted(name=name, pid=pid):
                yield self._entry("child_started", name, pid=pid)
        for effect in effects:
            match effect:
                case TellDeath(name=name, how=how, often=often, next_start_s=next_start_s):
                    reason = f"{how}; died {often}; starts again in {next_start_s:.1f} s"
                    yield self._entry("child_died", name, reason)
                case TellGivenUp(name=name, how=how, often=often, fix=fix):
                    yield self._entry("child_given_up", name, f"{how}; died {often}; {fix}")
        if isinstance(event, ChildGone) and not any(isinstance(effect, TellDeath | TellGivenUp) for effect in effects):
            yield self._entry("child_ended", event.name, f"status {event.returncode}", event.pid)

    def _entry(self, kind: JournalKind, name: NodeId, reason: str = "", pid: int = 0) -> JournalEntry:
        roles: dict[NodeId, ProcessRole] = {plan.name: plan.role for plan in self.plans}
        role = roles.get(name, "")
        return JournalEntry(kind=kind, actor=PARENT, node=name, role=role, reason=reason[:REASON_MAX], pid=pid)
