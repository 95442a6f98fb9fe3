"""A process that is a member of the cluster, as far as all of them are alike: its spoke, the gateway on it, the actors
behind that, and among them the Member and its part of the journal.

What a worker, a frontend and a parent have beside that is theirs: they add their actors and run what else they need.
"""

from collections.abc import Callable

import attrs
import structlog
import trio

from hydra.actors.core.gateway import Gateway
from hydra.actors.core.host import ActorHost, Observe, observe_nothing
from hydra.actors.core.identity import Identity
from hydra.actors.core.journal_outbox import JournalOutbox, LogEntry
from hydra.actors.core.machine import Effect
from hydra.actors.core.membership import Greet, Leave, Member, Reached, TurnedAway
from hydra.actors.core.names import JOURNAL_NAME, MEMBER
from hydra.actors.families.journal_log import log_entry
from hydra.protocol.ids import ActorName
from hydra.protocol.refusal import Refusal
from hydra.protocol.wires.wire import Spoke

log = structlog.get_logger()


def log_turned_away(refusal: Refusal) -> None:
    log.warning("turned away", code=refusal.code, why=refusal.message)


@attrs.define(eq=False)
class MemberHost:
    """`siblings` are told when the member is in and when it is out; `turned_away` decides whether waiting helps."""

    spoke: Spoke
    identity: Identity
    siblings: tuple[ActorName, ...]
    turned_away: Callable[[Refusal], None] = log_turned_away
    observe: Observe = observe_nothing
    member: Member = attrs.field(init=False)
    gateway: Gateway = attrs.field(init=False)
    actor_host: ActorHost = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.member = Member(self.identity, (*self.siblings, JOURNAL_NAME))
        self.gateway = Gateway(lambda _, frames: self.spoke.send_nowait(frames), self.spoke.receive, MEMBER)
        self.actor_host = ActorHost(self.spoke.peer, self.gateway.carry, self.observe)
        self.actor_host.add(MEMBER, self.member, self._perform)
        self.actor_host.add(JOURNAL_NAME, JournalOutbox(self.identity.node_id, self.identity.role), self._perform)

    def start(self, nursery: trio.Nursery) -> None:
        """Greets, and from now on takes mail and keeps timers, as long as the nursery is open."""
        nursery.start_soon(self.actor_host.keep_timers)
        nursery.start_soon(self.gateway.pump, self.actor_host)
        self.actor_host.post(MEMBER, Greet())

    def leave(self, why: str) -> None:
        """Says goodbye, so that nobody has to wait for a lease."""
        self.actor_host.post(MEMBER, Leave(why))

    def silence_s(self) -> float:
        """How long nothing has come from the coordinator."""
        return trio.current_time() - self.gateway.last_heard_s

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Reached(fault=""):
                log.info("this worker can be used")  # plans are made of nobody else
            case Reached(fault=fault):
                log.warning("this worker cannot be used", why=fault)
            case LogEntry(entry=entry):
                log_entry(entry)
            case TurnedAway(refusal=refusal):
                self.turned_away(refusal)
            case _:
                raise AssertionError(f"a member cannot do {effect!r}")
