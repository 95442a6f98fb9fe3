"""What of a coordinator's turns belongs into its journal: read from the events and effects of its machines.

The machines do not know that they are watched. It decides nothing; what it remembers is only what makes a sentence
whole: who stood where, since when, and because of what.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import attrs

from hydra.actors.core.facts import (
    LaneBroken,
    ModelGone,
    ModelStalled,
    NodeJoined,
    NodeLost,
    NodeSuspect,
    RouteDown,
    RouteUp,
    StepVanished,
)
from hydra.actors.core.machine import Effect, Event, Received, Send, Tell, TimerFired
from hydra.actors.core.names import BROKER_NAME, MEMBER, PLANNER_NAME, REGISTRY_NAME
from hydra.actors.membership.registry import NotLetIn, Opened, Registry
from hydra.actors.planning.desired_model import NodeNoted, WasDescribed
from hydra.protocol.ids import ActorName, Epoch, NodeId, PeerId, RouteId
from hydra.protocol.messages.generations import Reopen
from hydra.protocol.messages.journal import REASON_MAX, JournalEntry, JournalKind
from hydra.protocol.messages.membership import Expelled, Goodbye, Heartbeat, MemberRole, Welcome
from hydra.protocol.messages.models import LoadModel, Rebalance
from hydra.protocol.messages.plans import Activate, LoadFailed, LoadSlice, Ready, RouteBroken, SliceLoaded

REMEMBERED_MAX = 4096  # names of those that were turned away
REFUSAL_EVERY_S = 1.0


@attrs.define(eq=False)
class CoordinatorJournal:
    """`model_of` names the model of a route; `results_refused` counts the results of former epochs."""

    registry: Registry
    model_of: Callable[[RouteId], str]
    results_refused: Callable[[], int]
    _members: dict[PeerId, tuple[NodeId, MemberRole]] = attrs.field(factory=dict, init=False)
    _silent_since_s: dict[NodeId, float] = attrs.field(factory=dict, init=False)  # of suspects
    _turned_away: dict[NodeId, str] = attrs.field(factory=dict, init=False)
    _refused_s: float = attrs.field(default=-math.inf, init=False)  # when somebody's being turned away was told last
    _stale: dict[PeerId, int] = attrs.field(factory=dict, init=False)
    _results_refused: int = attrs.field(default=0, init=False)
    _epochs: dict[RouteId, Epoch] = attrs.field(factory=dict, init=False)  # of routes that are up, or were last
    _placed: dict[RouteId, tuple[str, ...]] = attrs.field(factory=dict, init=False)  # by the last plan of each route
    _ordered_s: dict[tuple[PeerId, RouteId, Epoch], float] = attrs.field(factory=dict, init=False)  # loads under way
    _down: dict[RouteId, tuple[float, str]] = attrs.field(factory=dict, init=False)
    _causes: dict[RouteId, str] = attrs.field(factory=dict, init=False)  # why a route needs another plan
    _downs: int = attrs.field(default=0, init=False)  # routes that the planner took down, and the broker not yet
    _held: list[JournalEntry] = attrs.field(factory=list, init=False)  # plans that were made in the same turn
    _stalled: dict[str, str] = attrs.field(factory=dict, init=False)

    def __call__(
        self, actor: ActorName, event: Event, effects: Sequence[Effect], now_s: float
    ) -> Iterable[JournalEntry]:
        if actor == BROKER_NAME:
            return self._of_broker(event, effects, now_s) if type(event) in _BROKERS else ()
        if actor == PLANNER_NAME:
            return self._of_planner(event, effects, now_s)
        return self._of_registry(event, effects, now_s) if actor == REGISTRY_NAME else ()

    # ------------------------------------------------------------ who is there

    def _of_registry(self, event: Event, effects: Sequence[Effect], now_s: float) -> Iterator[JournalEntry]:
        match event:
            case Opened():
                yield JournalEntry(
                    kind="coordinator_began",
                    actor=REGISTRY_NAME,
                    node="coordinator",
                    role="coordinator",
                    count=self.registry.term,
                )
            case Received(sender=sender, message=Heartbeat(stale_dropped=dropped)):
                yield from self._stale_of(sender.peer, dropped)
            case TimerFired(key="sweep"):
                yield from self._stale_results()
        for effect in effects:
            match effect:
                case Send(to=to, message=Expelled(why=why)) if to.actor == MEMBER:
                    yield from self._gone(to.peer, why, left=_is_goodbye(event))
                case Send(to=to, message=Welcome()):
                    yield from self._came(to.peer)
                case NotLetIn(node=node, refusal=refusal):
                    yield from self._refused(node, refusal.message, now_s)

    def _refused(self, node: NodeId, reason: str, now_s: float) -> Iterator[JournalEntry]:
        """Each reason once, and not more than one a second: strangers may come under any number of names."""
        if self._turned_away.get(node) == reason or now_s < self._refused_s + REFUSAL_EVERY_S:
            return
        self._refused_s = now_s
        if len(self._turned_away) >= REMEMBERED_MAX:
            del self._turned_away[next(iter(self._turned_away))]
        self._turned_away[node] = reason
        yield _entry("turned_away", REGISTRY_NAME, node=node, reason=reason)

    def _came(self, peer: PeerId) -> Iterator[JournalEntry]:
        lease = next((lease for lease in self.registry.members() if lease.peer == peer), None)
        if lease is None:
            return
        if peer in self._members:
            if not any(lease.hello.node_id in nodes for nodes in self._placed.values()):
                return  # its greetings crossed, as they do while a coordinator starts: nothing came of it
            yield from self._gone(peer, "greeted again", left=False)
        self._members[peer] = (lease.hello.node_id, lease.hello.role)
        self._turned_away.pop(lease.hello.node_id, None)
        yield _entry("joined", REGISTRY_NAME, node=lease.hello.node_id, role=lease.hello.role)

    def _gone(self, peer: PeerId, reason: str, *, left: bool) -> Iterator[JournalEntry]:
        node, role = self._members.pop(peer, (NodeId(""), None))
        self._silent_since_s.pop(node, None)
        self._stale.pop(peer, None)
        self._ordered_s = {key: at_s for key, at_s in self._ordered_s.items() if key[0] != peer}
        if role is not None:
            yield _entry("left" if left else "lost", REGISTRY_NAME, node=node, role=role, reason=reason)

    def _stale_of(self, peer: PeerId, dropped: int) -> Iterator[JournalEntry]:
        before = self._stale.get(peer, 0)
        node, role = self._members.get(peer, (NodeId(""), None))
        if role is None or dropped <= before:
            return
        self._stale[peer] = dropped
        yield _entry("stale_dropped", REGISTRY_NAME, node=node, role=role, count=dropped - before)

    def _stale_results(self) -> Iterator[JournalEntry]:
        refused, before = self.results_refused(), self._results_refused
        if refused > before:
            self._results_refused = refused
            yield _entry("stale_dropped", BROKER_NAME, node="coordinator", role="coordinator", count=refused - before)

    # ------------------------------------------------------------ plans

    def _of_planner(self, event: Event, effects: Sequence[Effect], now_s: float) -> Iterator[JournalEntry]:
        match event:
            case NodeSuspect(node=node, suspect=suspect):
                yield from self._suspicion(node, now_s, suspect=suspect)
            case Received(sender=sender, message=SliceLoaded() as loaded):
                ordered_s = self._ordered_s.pop((sender.peer, loaded.route, loaded.epoch), now_s)
                yield self._of_slice("slice_loaded", sender.peer, loaded, took_s=now_s - ordered_s)
            case Received(sender=sender, message=LoadFailed() as failed):
                yield self._of_slice("load_failed", sender.peer, failed, reason=failed.refusal.message)
            case Received(sender=sender, message=Ready() as ready):
                yield self._of_slice("slice_ready", sender.peer, ready)
        orders: list[tuple[PeerId, LoadSlice]] = []
        for effect in effects:
            match effect:
                case Tell(fact=RouteDown() as down):
                    self._causes[down.route] = _cause_of(event)
                    self._down[down.route] = (now_s, _cause_of(event))
                    self._downs += 1
                case NodeNoted(node=node, fault=fault):
                    yield _entry("unusable" if fault else "usable", PLANNER_NAME, node=node, reason=fault)
                case Send(to=to, message=LoadSlice() as order):
                    orders.append((to.peer, order))
                    self._ordered_s[to.peer, order.route, order.epoch] = now_s
                case Send(to=to, message=Activate() as order):
                    yield self._of_slice("activating", to.peer, order)
        plans = list(self._plans(orders, event))
        if self._downs:
            self._held += plans  # the broker says first how many answers wait
        else:
            yield from plans

    def _suspicion(self, node: NodeId, now_s: float, *, suspect: bool) -> Iterator[JournalEntry]:
        if suspect:
            lease = next((lease for lease in self.registry.members() if lease.hello.node_id == node), None)
            since_s = self._silent_since_s[node] = lease.last_seen_s if lease is not None else now_s
            yield _entry("suspect", REGISTRY_NAME, node=node, role="worker", took_s=now_s - since_s)
        elif node in self._silent_since_s:
            took_s = now_s - self._silent_since_s.pop(node)
            yield _entry("recovered", REGISTRY_NAME, node=node, role="worker", took_s=took_s)

    def _plans(self, orders: Sequence[tuple[PeerId, LoadSlice]], event: Event) -> Iterator[JournalEntry]:
        """One plan for each route that was ordered in this turn, then its slices."""
        for route, epoch in dict.fromkeys((order.route, order.epoch) for _, order in orders):
            model_id = self.model_of(route)
            self._placed[route] = tuple(self._name(peer) for peer, order in orders if order.route == route)
            own = [(peer, order) for peer, order in orders if order.route == route and order.epoch == epoch]
            yield _entry(
                "planned",
                PLANNER_NAME,
                model_id=model_id,
                route=route,
                epoch=epoch,
                nodes=tuple(self._name(peer) for peer, _ in own),
                reason=self._causes.pop(route, "") or _cause_of(event),
            )
            for peer, order in own:
                yield attrs.evolve(
                    self._of_slice("slice_loading", peer, order),
                    first_layer=order.first_layer,
                    end_layer=order.end_layer,
                )

    def _of_slice(self, kind: JournalKind, peer: PeerId, message: Any, **more: Any) -> JournalEntry:
        """Of a message between planner and stage: each names a route and its epoch."""
        return _entry(
            kind,
            PLANNER_NAME,
            node=self._name(peer),
            role="worker",
            model_id=self.model_of(message.route),
            route=message.route,
            epoch=message.epoch,
            **more,
        )

    def _name(self, peer: PeerId) -> NodeId:
        return self._members.get(peer, (NodeId(peer), "worker"))[0]

    # ------------------------------------------------------------ routes

    def _of_broker(self, event: Event, effects: Sequence[Effect], now_s: float) -> Iterator[JournalEntry]:
        match event:
            case RouteUp(model_id=model_id, route=route, epoch=epoch, nodes=nodes):
                self._epochs[route] = epoch
                self._stalled.pop(model_id, None)
                down = self._down.pop(route, None)
                yield _entry(
                    "route_up",
                    PLANNER_NAME,
                    model_id=model_id,
                    route=route,
                    epoch=epoch,
                    nodes=tuple(nodes),
                    took_s=None if down is None else now_s - down[0],
                )
            case RouteDown(model_id=model_id, route=route):
                yield _entry(
                    "route_down",
                    PLANNER_NAME,
                    model_id=model_id,
                    route=route,
                    epoch=self._epochs.get(route),
                    reason=self._down.get(route, (now_s, ""))[1],
                    count=sum(isinstance(e, Send) and isinstance(e.message, Reopen) for e in effects),
                )
                self._downs -= 1
                if not self._downs:
                    held, self._held = self._held, []
                    yield from held
            case ModelStalled(model_id=model_id, refusal=refusal):
                reason = refusal.message if refusal is not None else ""
                if reason and self._stalled.get(model_id) != reason:
                    yield _entry("model_stalled", PLANNER_NAME, model_id=model_id, reason=reason)
                self._stalled[model_id] = reason
            case ModelGone(model_id=model_id, refusal=refusal, forget=forget):
                if forget:
                    self._stalled.pop(model_id, None)
                yield _entry("model_gone", PLANNER_NAME, model_id=model_id, reason=refusal.message)


_BROKERS = (RouteUp, RouteDown, ModelStalled, ModelGone)


def _entry(kind: JournalKind, actor: ActorName, *, reason: str = "", **fields: Any) -> JournalEntry:
    return JournalEntry(kind=kind, actor=actor, reason=reason[:REASON_MAX], **fields)


def _is_goodbye(event: Event) -> bool:
    return isinstance(event, Received) and isinstance(event.message, Goodbye)


def _cause_of(event: Event) -> str:
    """In which words a plan was made, or a route went down, because of this event."""
    match event:
        case NodeLost(node=node):
            return f"lost {node}"
        case StepVanished(why=why) | Received(message=RouteBroken(why=why)):
            return why
        case Received(message=LoadFailed(refusal=refusal)):
            return refusal.message
        case Received(message=Rebalance()):
            return "a rebalance was asked for"
        case Received(message=LoadModel()) | WasDescribed():
            return "the model is wanted"
        case TimerFired(key=("silence", _)):
            return "a worker has said nothing for too long while it was made ready"
        case NodeJoined(node=node):
            return f"{node} joined"
        case NodeSuspect(node=node):
            return f"{node} is heard again"
        case LaneBroken(why=why):
            return why
        case _:
            return "its nodes are there"
