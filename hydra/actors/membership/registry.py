"""Who is alive. The Registry grants generations, renews leases, and has the last word on a loss.

TRANSITIONS below is the diagram of one lease. A beat proves that a process is there, not that it computes: the blame
for a late step is on the first stage that accepted it and did not send it, never on one that a neighbour blocks. A
generation that was declared lost stays lost; its process is expelled, and may greet again for a new one. Nothing here
knows layers or requests.
"""

import hmac
from collections import Counter
from collections.abc import Callable
from typing import Literal

import attrs

from hydra.actors.core.authority import Speaker, speaker_of
from hydra.actors.core.facts import (
    FrontendJoined,
    FrontendLost,
    LaneBroken,
    NodeJoined,
    NodeLost,
    NodeSuspect,
    StepOverdue,
    StepVanished,
    TermRaised,
    Undelivered,
)
from hydra.actors.core.machine import Effect, Event, Received, Send, SetTimer, Tell, TimerFired
from hydra.actors.core.names import BROKER_NAME, MEMBER, PARENT, PLANNER_NAME
from hydra.actors.core.transitions import Cause, Transitions, rows
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import TERM_MAX, Address, Generation, NodeId, PeerId, StepId
from hydra.protocol.loopback import host_of, is_loopback
from hydra.protocol.messages.membership import (
    PROTOCOL_VERSION,
    Beacon,
    ChildExited,
    Expelled,
    Goodbye,
    Heartbeat,
    HeartbeatSeen,
    Hello,
    HelloRefused,
    KillWorker,
    MemberRole,
    NodeState,
    SayHello,
    StageProgress,
    Welcome,
)
from hydra.protocol.refusal import Refusal, RefusalCode
from hydra.protocol.settings.cluster import ClusterSettings

LOST_AFTER_S = 5.0
GENERATIONS_PER_TERM = 1 << 20
SOME_BEATS_MISSED, SILENT = "some beats missed", f"{LOST_AFTER_S:.0f} s without a beat"
TRANSITIONS = Transitions(
    "lease",
    "unknown",
    (
        *rows("unknown", Hello, "ready"),
        *rows("ready", SOME_BEATS_MISSED, "suspect"),
        *rows("suspect", Heartbeat, "ready"),
        *rows("ready suspect", SILENT, "lost"),
        *rows("ready suspect", StepOverdue, "lost"),
        *rows("ready suspect", ChildExited, "lost"),
        *rows("ready suspect", LaneBroken, "lost"),
        *rows("ready suspect", Goodbye, "lost"),
        *rows("ready suspect", Hello, "lost"),
    ),
)
TERM_JUMP_MAX = 1 << 16  # all that greetings may raise the term by in one life of a coordinator


@attrs.frozen
class Broadcast:
    """Effect: a beacon to everybody who listens."""

    beacon: Beacon


@attrs.frozen
class NotLetIn:
    """Effect: somebody was refused at the door; for people to see."""

    node: NodeId
    host: str  # as it says
    refusal: Refusal


@attrs.frozen
class Opened:
    """Event: the coordinator is up; starts the beacon and the sweep."""


@attrs.define(eq=False)
class Lease:
    """One living process and its lease."""

    hello: Hello
    peer: PeerId
    generation: Generation
    last_seen_s: float
    state: NodeState = "ready"
    memory_free_bytes: int = 0
    stale_dropped: int = 0
    log_lines_lost: int = 0
    progress: tuple[StageProgress, ...] = ()


@attrs.define(eq=False)
class Registry:
    """Keeps the members of the cluster, workers, frontends and parents alike."""

    term: int
    results_addr: Endpoint
    cluster: ClusterSettings = attrs.field(factory=ClusterSettings)
    host_of: Callable[[PeerId], str] = lambda peer: ""  # from where a peer is connected; empty: from this machine
    changes: int = attrs.field(default=0, init=False)
    stale_dropped: int = attrs.field(default=0, init=False)  # by workers that are gone
    _log_lines_lost: Counter[str] = attrs.field(factory=Counter, init=False)  # by role, of members that are gone
    _members: dict[NodeId, Lease] = attrs.field(factory=dict, init=False)
    _granted: int = attrs.field(default=0, init=False)
    _beacons: int = attrs.field(default=0, init=False)
    _greeted: set[PeerId] = attrs.field(factory=set, init=False)  # processes that had a generation from this life
    _term_most: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._term_most = min(self.term + TERM_JUMP_MAX, TERM_MAX)

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        match event:
            case Received(sender=sender, message=Heartbeat() as beat):
                return self._beat(sender.peer, beat, now_s)
            case Received(sender=sender, message=Hello() as hello):
                return self._hello(sender.peer, hello, now_s)
            case Received(sender=sender, message=Goodbye(generation=generation, why=why)):
                member = self._member(sender.peer)
                return self._lose(member, Goodbye, why) if member and member.generation == generation else []
            case Received(sender=sender, message=ChildExited(node_id=node, pid=pid, how=how)):
                member = self._child(sender.peer, node)
                return self._lose(member, ChildExited, f"exited: {how}") if member and member.hello.pid == pid else []
            case LaneBroken(peer=peer, why=why):
                member = self._member(peer)
                return self._lose(member, LaneBroken, why) if member else []
            case StepOverdue() as late:
                return self._blame(late, now_s)
            case Undelivered():
                return []  # whoever waits for it greets again
            case Opened() | TimerFired(key="sweep"):
                return self._sweep(now_s)
            case _:
                raise AssertionError(f"a registry cannot be told {event!r}")

    def check(self) -> None:
        """One lease per name and per process, each with a generation of its own. Raises AssertionError."""
        leases = self._members
        assert all(node == lease.hello.node_id for node, lease in leases.items()), "a lease under another's name"
        assert len({lease.peer for lease in leases.values()}) == len(leases), "one process has two leases"
        generations = {lease.generation for lease in leases.values()}
        assert len(generations) == len(leases), "a generation was granted twice"
        assert all(lease.state in ("ready", "suspect") for lease in leases.values()), "a lost lease is kept"
        assert len(leases) <= self._granted, "a lease that was not granted"
        assert {lease.peer for lease in leases.values()} <= self._greeted, "a member that has not greeted"
        assert 0 <= self.term <= self._term_most, f"term {self.term} beyond {self._term_most}"

    def members(self) -> tuple[Lease, ...]:
        return tuple(self._members.values())

    def speaker_of(self, peer: PeerId) -> Speaker:
        """What this peer may speak as."""
        member = self._member(peer)
        return speaker_of(peer, member.hello.role if member is not None else None)

    def name_of(self, peer: PeerId) -> tuple[NodeId, MemberRole] | None:
        """As which node, in which role, this peer was let in."""
        member = self._member(peer)
        return (member.hello.node_id, member.hello.role) if member is not None else None

    def total_stale_dropped(self) -> int:
        return self.stale_dropped + sum(member.stale_dropped for member in self._members.values())

    def log_lines_lost(self) -> dict[str, int]:
        """By the role of the processes whose log could not be written; roles that lost none are not in it."""
        lost = self._log_lines_lost.copy()
        for member in self._members.values():
            lost[member.hello.role] += member.log_lines_lost
        return {role: lines for role, lines in sorted(lost.items()) if lines}

    # ------------------------------------------------------------ greeting

    def _hello(self, peer: PeerId, hello: Hello, now_s: float) -> list[Effect]:
        refusal = self._refusal(peer, hello, now_s)
        if refusal is not None:
            answer = Send(Address(peer, MEMBER), HelloRefused(refusal=refusal))
            return [answer, NotLetIn(hello.node_id, hello.host, refusal)]
        effects = self._raise_term(peer, hello)
        former = self._members.get(hello.node_id)
        if former is not None:
            again = former.peer == peer  # it knows; an Expelled would make it greet once more, and so on for ever
            why = "greeted again" if again else "replaced by a new process"
            effects += self._lose(former, Hello, why, expel=not again)
        self._granted += 1
        self._greeted.add(peer)
        self.changes += 1
        generation = Generation(self.term * GENERATIONS_PER_TERM + self._granted)
        free = hello.device.memory_free_bytes if hello.device else 0
        TRANSITIONS.step(TRANSITIONS.first, Hello, "ready")
        self._members[hello.node_id] = Lease(hello, peer, generation, now_s, memory_free_bytes=free)
        welcome = Welcome(
            generation=generation,
            term=self.term,
            heartbeat_s=self.cluster.heartbeat_interval,
            results_addr=self.results_addr,
        )
        effects.append(Send(Address(peer, MEMBER), welcome))
        if hello.role == "worker" and hello.device is not None and hello.pipeline_addr is not None:
            joined = NodeJoined(
                node=hello.node_id,
                peer=peer,
                generation=generation,
                offer=hello.device,
                pipeline_addr=hello.pipeline_addr,
                held=hello.held,
                term_seen=hello.term_seen,
                store_addr=hello.store_addr,
            )
            effects.append(Tell(PLANNER_NAME, joined))
        elif hello.role == "frontend":
            effects.append(Tell(PLANNER_NAME, FrontendJoined(peer=peer)))
        return effects

    def _raise_term(self, peer: PeerId, hello: Hello) -> list[Effect]:
        """A stranger that has seen our term, or a later one, served a coordinator whose state we do not have."""
        if not self._knows_more(peer, hello):
            return []
        self.term = hello.term_seen + 1
        return [Tell(PLANNER_NAME, TermRaised(term=self.term))]

    def _knows_more(self, peer: PeerId, hello: Hello) -> bool:
        return hello.term_seen > self.term or (hello.term_seen == self.term and peer not in self._greeted)

    def _refusal(self, peer: PeerId, hello: Hello, now_s: float) -> Refusal | None:
        def no(code: RefusalCode, message: str, retry_after_s: float) -> Refusal:
            return Refusal(code=code, message=message, retry_after_s=retry_after_s)

        if hello.version != PROTOCOL_VERSION:
            message = f"{hello.node_id} speaks protocol version {hello.version}, this coordinator {PROTOCOL_VERSION}"
            return no("version_mismatch", message, 30.0)
        if not hmac.compare_digest(hello.auth.encode(), self.cluster.join_token.encode()):
            return no("unauthorized", f"{hello.node_id} did not show the cluster's join token", 30.0)
        if hello.role == "worker" and (hello.device is None or hello.pipeline_addr is None):
            return no("invalid_value", f"{hello.node_id} offers no device or no address", 30.0)
        elsewhere = self.host_of(peer)
        reached_at = hello.pipeline_addr.addr if hello.pipeline_addr is not None else ""
        if hello.role == "worker" and elsewhere and is_loopback(host_of(reached_at)):
            message = (
                f"{hello.node_id} comes from {elsewhere} and says it is reached at {hello.pipeline_addr}, which is "
                "this machine; start it with --bind and --advertise an address of its own"
            )
            return no("unreachable", message, 30.0)
        if self._knows_more(peer, hello) and hello.term_seen >= self._term_most:
            message = (
                f"{hello.node_id} has seen term {hello.term_seen} and this coordinator, at term {self.term}, goes to "
                f"{self._term_most} at most: it comes from another cluster, or its memory is damaged; restart it"
            )
            return no("invalid_value", message, 30.0)
        known = self._member(peer)
        if known is not None and (known.hello.node_id, known.hello.role) != (hello.node_id, hello.role):
            message = (
                f"this process is the {known.hello.role} {known.hello.node_id!r} already, and nobody else beside it"
            )
            return no("invalid_value", message, 30.0)
        former = self._members.get(hello.node_id)
        if former is None or former.peer == peer or former.state != "ready":
            return None
        if now_s - former.last_seen_s > 2 * self.cluster.heartbeat_interval:
            return None
        message = f"the name {hello.node_id!r} belongs to a living process (pid {former.hello.pid})"
        return no("invalid_value", message, self.cluster.heartbeat_interval)

    # ------------------------------------------------------------ leases

    def _member(self, peer: PeerId) -> Lease | None:
        return next((member for member in self._members.values() if member.peer == peer), None)

    def _child(self, parent: PeerId, node: NodeId) -> Lease | None:
        """The member of this name, if the parent at that peer started it."""
        speaker, member = self._member(parent), self._members.get(node)
        return member if speaker is not None and member is not None and _is_child(member, speaker) else None

    def _beat(self, peer: PeerId, beat: Heartbeat, now_s: float) -> list[Effect]:
        member = self._member(peer)
        if member is None or member.generation != beat.generation:
            return [Send(Address(peer, MEMBER), SayHello(term=self.term, generation=beat.generation))]
        member.last_seen_s = now_s
        member.memory_free_bytes = beat.memory_free_bytes
        member.stale_dropped = beat.stale_dropped
        member.log_lines_lost = beat.log_lines_lost
        member.progress = beat.progress
        seen: list[Effect] = [Send(Address(peer, MEMBER), HeartbeatSeen(generation=beat.generation))]
        if member.state == "suspect":
            self._move(member, Heartbeat, "ready")
            return [*seen, *self._suspicion(member, suspect=False)]
        return seen

    def _sweep(self, now_s: float) -> list[Effect]:
        self._beacons += 1
        beacon = Beacon(term=self.term, number=self.changes, counter=self._beacons)
        effects: list[Effect] = [Broadcast(beacon), SetTimer("sweep", now_s + self.cluster.heartbeat_interval)]
        for member in list(self._members.values()):
            silent_s = now_s - member.last_seen_s
            if silent_s > LOST_AFTER_S:
                effects += self._lose(member, SILENT, f"silent for {silent_s:.1f} s")
            elif silent_s > self.cluster.suspect_after_s and member.state == "ready":
                self._move(member, SOME_BEATS_MISSED, "suspect")
                effects += self._suspicion(member, suspect=True)
        return effects

    def _suspicion(self, member: Lease, *, suspect: bool) -> list[Effect]:
        if member.hello.role != "worker":
            return []
        return [Tell(PLANNER_NAME, NodeSuspect(node=member.hello.node_id, suspect=suspect))]

    def _move(self, member: Lease, cause: Cause, after: NodeState) -> None:
        TRANSITIONS.step(member.state, cause, after)
        member.state = after

    def _lose(self, member: Lease, cause: Cause, why: str, *, expel: bool = True) -> list[Effect]:
        self._move(member, cause, "lost")
        node = member.hello.node_id
        del self._members[node]
        self.changes += 1
        self.stale_dropped += member.stale_dropped
        self._log_lines_lost[member.hello.role] += member.log_lines_lost
        effects: list[Effect] = []
        if expel:
            effects.append(Send(Address(member.peer, MEMBER), Expelled(generation=member.generation, why=why)))
        if member.hello.role == "worker":
            effects.append(Tell(PLANNER_NAME, NodeLost(node=node, generation=member.generation, why=why)))
        elif member.hello.role == "frontend":
            effects.append(Tell(PLANNER_NAME, FrontendLost(peer=member.peer)))
            effects.append(Tell(BROKER_NAME, FrontendLost(peer=member.peer)))
        return effects

    # ------------------------------------------------------------ blame

    def _blame(self, late: StepOverdue, now_s: float) -> list[Effect]:
        """Finds who holds an overdue step. Stages before the culprit have sent it on, those after never saw it."""
        route = [self._members.get(node) for node in late.nodes]
        for member in route:
            if member is None:
                return []  # lost already; the planner knows
            if now_s - member.last_seen_s > self.cluster.suspect_after_s:
                reason = f"silent while step {late.step} is overdue"  # its parent sees to the process
                return self._lose(member, StepOverdue, reason)
        lost_before = len(route)
        for index, (node, member) in enumerate(zip(late.nodes, route, strict=True)):
            assert member is not None
            verdict = self._verdict(member, late)
            if verdict == "stuck":
                parents = [m for m in self._members.values() if _is_child(member, m)]
                kill = KillWorker(node_id=node, pid=member.hello.pid, why=f"step {late.step} is overdue")
                killed: list[Effect] = [Send(Address(parent.peer, PARENT), kill) for parent in parents]
                return [*self._lose(member, StepOverdue, f"holds step {late.step} past its lease"), *killed]
            if verdict == "waits":
                lost_before = index
                break
        why = f"step {late.step} is overdue and no stage holds it"
        return [Tell(PLANNER_NAME, StepVanished(route=late.route, epoch=late.epoch, why=why, stage_index=lost_before))]

    def _verdict(self, member: Lease, late: StepOverdue) -> Literal["stuck", "sent it on", "waits"]:
        reported = [p for p in member.progress if p.route == late.route and p.epoch == late.epoch]
        accepted = max((p.accepted for p in reported), default=StepId(0))
        sent = max((p.sent for p in reported), default=StepId(0))
        if sent >= late.step:
            return "sent it on"
        return "stuck" if accepted >= late.step else "waits"


def _is_child(member: Lease, parent: Lease) -> bool:
    """Whether that parent started this process: both show the same secret, which it made up and told nobody else."""
    if parent.hello.role != "parent" or not parent.hello.family:
        return False
    return hmac.compare_digest(member.hello.family.encode(), parent.hello.family.encode())
