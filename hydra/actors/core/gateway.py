"""Between an ActorHost and its wire: messages out as frames, frames in as messages for the right actor.

Who may be told what from outside is a table here, and who may say it is one in `authority`, so that malformed and
orders of strangers are dropped and counted at the door and never reach a machine. A message that makes an actor raise
all the same is a bug of ours, but it ends its sender's membership, not this process.

A connection that breaks may swallow messages, and nobody would wait for what was never said. So each process numbers
what it says to another; a number left out ends the membership (LaneBroken), and everything is said afresh in the next.
Heartbeats and their answers are numbered too, so that the last word before a silence is missed within a beat or two.
"""

from collections.abc import Awaitable, Callable, Mapping

import attrs
import structlog
import trio

from hydra.actors.core.authority import Speaker, may_say
from hydra.actors.core.facts import LaneBroken, Undelivered
from hydra.actors.core.host import ActorHost
from hydra.protocol import codec
from hydra.protocol.blob import Frames
from hydra.protocol.faults import MessageTooBig, TheyBrokeTheRules
from hydra.protocol.ids import ActorName, Address, PeerId
from hydra.protocol.messages import Message
from hydra.protocol.messages.generations import Close, Open, OpenRefused, Reopen, Tokens
from hydra.protocol.messages.journal import JournalEntries, JournalReply, JournalRequest
from hydra.protocol.messages.membership import (
    Beacon,
    ChildExited,
    Expelled,
    Goodbye,
    Heartbeat,
    HeartbeatSeen,
    Hello,
    HelloRefused,
    KillWorker,
    SayHello,
    Welcome,
)
from hydra.protocol.messages.models import (
    CancelJob,
    JobsReply,
    JobsRequest,
    LoadModel,
    ModelReply,
    ModelsChanged,
    ReadyReply,
    ReadyRequest,
    Rebalance,
    Sample,
    StatusReply,
    StatusRequest,
    UnloadModel,
)
from hydra.protocol.messages.plans import (
    Activate,
    Dial,
    Dialled,
    DropSlice,
    Fenced,
    LoadFailed,
    LoadProgress,
    LoadSlice,
    ReachReport,
    Ready,
    RouteBroken,
    SliceLoaded,
)
from hydra.protocol.refusal import Refusal
from hydra.protocol.wires.wire import Delivery, PeerGone, WireFull

ACCEPTS: Mapping[str, frozenset[type]] = {
    "registry": frozenset({Hello, Heartbeat, Goodbye, ChildExited}),
    "planner": frozenset(
        {SliceLoaded, Ready, LoadFailed, RouteBroken, LoadProgress, Fenced, Dialled}
        | {LoadModel, UnloadModel, Rebalance, JobsRequest, CancelJob}
    ),
    "broker": frozenset({Open, Close, ReadyRequest}),
    "status": frozenset({StatusRequest}),
    "member": frozenset({Welcome, HelloRefused, SayHello, Expelled, Beacon, HeartbeatSeen, ReachReport}),
    "stage": frozenset({LoadSlice, Activate, DropSlice}),
    "scout": frozenset({Dial}),
    "sessions": frozenset({Tokens, OpenRefused, Reopen}),
    "asks": frozenset({ModelReply, JobsReply, ModelsChanged, StatusReply, ReadyReply, JournalReply}),
    "journal": frozenset({JournalEntries, JournalRequest}),
    "parent": frozenset({KillWorker}),
}

PEERS_MAX = 4096  # whose numbers are remembered; the one heard of first is forgotten first

log = structlog.get_logger()


@attrs.define(eq=False)
class Gateway:
    """One process's post office. `dispatch(peer, frames)` puts frames on the wire and may raise WireFull, PeerGone.

    `watcher` is the actor that is told LaneBroken; `speaker_of` says what a peer is to this process.
    """

    dispatch: Callable[[PeerId, Frames], None]
    receive: Callable[[], Awaitable[list[Delivery]]]
    watcher: ActorName
    speaker_of: Callable[[PeerId], Speaker] = lambda peer: "coordinator"  # whoever has a spoke hears nobody else
    undelivered: int = 0  # the wire would not take it: its peer is gone or far behind
    malformed: int = 0
    forbidden: int = 0  # well-formed, and not theirs to say
    contained: int = 0  # an actor raised
    last_heard_s: float = 0.0  # on the loop's clock
    _said: dict[PeerId, int] = attrs.field(factory=dict, init=False)
    _heard: dict[PeerId, int] = attrs.field(factory=dict, init=False)

    def carry(self, to: Address, sender: ActorName, message: Message) -> Undelivered | None:
        """What is too large to be said takes no number, so nobody misses it: its sender is told instead."""
        number = self._said.get(to.peer, 0) + 1
        try:
            frames = codec.encode(to.actor, sender, message, number)
        except MessageTooBig as error:
            self.undelivered += 1
            log.error("too large to be sent", to=to.peer, says=type(message).__name__, why=str(error))
            return Undelivered(to, message, Refusal(code="invalid_value", message=str(error)))
        _remember(self._said, to.peer, number)
        try:
            self.dispatch(to.peer, frames)
        except (PeerGone, WireFull) as error:
            self.undelivered += 1
            log.debug("undelivered", to=to.peer, says=type(message).__name__, why=str(error))
        return None

    async def pump(self, host: ActorHost) -> None:
        """Brings mail in for as long as the host runs."""
        while True:
            for delivery in await self.receive():
                self.last_heard_s = trio.current_time()
                self._deliver(host, delivery)

    def _deliver(self, host: ActorHost, delivery: Delivery) -> None:
        try:
            envelope = codec.decode(delivery.frames)
        except TheyBrokeTheRules as error:
            self.malformed += 1
            log.warning("malformed message on the command lane", peer=delivery.peer, why=str(error))
            return
        if type(envelope.message) not in ACCEPTS.get(envelope.to, ()) or not host.has(envelope.to):
            self.malformed += 1
            log.warning("mail for the wrong door", peer=delivery.peer, says=type(envelope.message).__name__)
            return
        speaker = self.speaker_of(delivery.peer)
        if not may_say(speaker, type(envelope.message)):
            self.forbidden += 1
            log.debug("not theirs to say", peer=delivery.peer, is_a=speaker, says=type(envelope.message).__name__)
            return
        if speaker != "stranger" and self._missed(delivery.peer, envelope.number):
            log.info("messages of a peer were lost", peer=delivery.peer, before=type(envelope.message).__name__)
            host.post(self.watcher, LaneBroken(delivery.peer))
        self._hand_over(host, delivery.peer, envelope)
        if speaker == "stranger" and envelope.number and self.speaker_of(delivery.peer) != "stranger":
            _remember(self._heard, delivery.peer, envelope.number)  # it was a greeting: its count begins here

    def _hand_over(self, host: ActorHost, peer: PeerId, envelope: codec.Envelope) -> None:
        """An actor that raises has let its sender's message half done: whatever it is a member of ends, and begins anew
        in good order. A second fault on the way out is not contained.
        """
        try:
            host.receive(envelope.to, Address(peer, envelope.sender), envelope.message)
        except Exception:
            self.contained += 1
            says = type(envelope.message).__name__
            log.exception("an actor raised; its message's sender is out", peer=peer, says=says, actor=envelope.to)
            host.post(self.watcher, LaneBroken(peer, f"its {says} made the {envelope.to} raise; see the log"))

    def samples(self) -> tuple[Sample, ...]:
        """What is counted at the door, for the metrics."""
        forbidden = Sample(
            name="hydra_forbidden_messages_total",
            kind="counter",
            help="Messages refused because it was not their sender's to say them.",
            value=self.forbidden,
        )
        contained = Sample(
            name="hydra_contained_faults_total",
            kind="counter",
            help="Messages that made an actor raise; their senders were expelled.",
            value=self.contained,
        )
        return forbidden, contained

    def _missed(self, peer: PeerId, number: int) -> bool:
        """Whether something is missing before this one. A number that is lower opens another life's count; 0 is outside
        any.
        """
        if not number:
            return False
        last = self._heard.get(peer, 0)
        _remember(self._heard, peer, number)
        return 0 < last < number - 1


def _remember(numbers: dict[PeerId, int], peer: PeerId, number: int) -> None:
    if peer not in numbers and len(numbers) >= PEERS_MAX:
        del numbers[next(iter(numbers))]
    numbers[peer] = number
