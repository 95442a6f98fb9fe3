"""Which ways between processes work. A plan counts on none that was not tried, nor on one that broke it twice.

A hop is one direction of one lane: the coordinator to a stage, a stage to the next, a stage to the results and to the
coordinator's store. Whoever will use it dials it, in the moment before it is needed, and says what came of it. A hop
that nobody answers on is dialled again every few seconds. A link that broke an epoch twice is in quarantine, longer
each time, although it answers: something swallows what it carries. Pure; it decides no plan, and dials nothing itself.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import attrs

from hydra.actors.core.facts import NodeJoined
from hydra.actors.core.machine import CancelTimer, Effect, Send, SetTimer
from hydra.actors.core.names import SCOUT
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Address, AskId, NodeId
from hydra.protocol.loopback import host_of, is_loopback
from hydra.protocol.messages.plans import Dial, Unanswered

HERE = NodeId("")  # the coordinator's own end; no node has that name
SCOUT_S = 3.5  # a process that does not say for so long what came of its dialling (2.5 s at most) cannot be counted on
FRESH_S = 5.0  # an answer that old still counts for the plan it was asked for
REDIAL_S = 3.0
FORGIVEN_S = 120.0  # without a break
QUARANTINE_S = (0.0, 5.0, 10.0, 20.0, 40.0, 60.0)  # after the first break, the second, ...

REDIAL = "redial"  # the timer: somebody should be dialled again, or a quarantine is over
NO_WORD = "it did not say in time whom it can reach"


@attrs.frozen
class DialOut:
    """Effect: the coordinator itself dials these steps' addresses, and posts DialledOut."""

    ask: AskId
    addrs: tuple[Endpoint, ...]


@attrs.frozen
class DialledOut:
    """Event: what came of it; named are those that did not answer."""

    ask: AskId
    unanswered: tuple[Unanswered, ...]


@attrs.frozen
class Hop:
    """`source` dials `target` at `addr`; `store`: on the store lane, else on the data lane."""

    source: NodeId
    target: NodeId
    addr: Endpoint
    store: bool = False


@attrs.define
class _Finding:
    """`fault` is empty when it answered. `at_s` is minus infinity for what must be tried again before it counts."""

    fault: str
    at_s: float


@attrs.define
class _Breaks:
    count: int = 0
    last_s: float = 0.0
    until_s: float = 0.0


@attrs.define(eq=False)
class Reach:
    """`results_addr` and `store_addr` are the coordinator's; no `store_addr`: it lends nothing."""

    results_addr: Endpoint
    store_addr: Endpoint | None = None
    _nodes: dict[NodeId, NodeJoined] = attrs.field(factory=dict, init=False)
    _findings: dict[Hop, _Finding] = attrs.field(factory=dict, init=False)
    _under_way: dict[tuple[AskId, NodeId], tuple[Hop, ...]] = attrs.field(factory=dict, init=False)
    _breaks: dict[tuple[NodeId, NodeId], _Breaks] = attrs.field(factory=dict, init=False)
    _told: dict[NodeId, str] = attrs.field(factory=dict, init=False)
    _next_ask: int = attrs.field(default=1, init=False)

    # ------------------------------------------------------------ who is there

    def joined(self, node: NodeJoined, now_s: float) -> list[Effect]:
        """A new life: nothing that was found of a former one counts."""
        self.lost(node.node)
        self._nodes[node.node] = node
        return self.dial(self._own_hops(node), now_s)

    def lost(self, node: NodeId) -> None:
        self._nodes.pop(node, None)
        self._told.pop(node, None)
        for hop in [hop for hop in self._findings if node in (hop.source, hop.target)]:
            del self._findings[hop]
        for (ask, source), hops in list(self._under_way.items()):  # what is found of it from now on is of nobody
            left = tuple(hop for hop in hops if node not in (hop.source, hop.target))
            if left:
                self._under_way[ask, source] = left
            else:
                del self._under_way[ask, source]

    def check(self) -> None:
        """Nothing is known or asked of who is not there. Raises AssertionError."""
        there = {HERE, *self._nodes}
        for hop in self._findings:
            assert hop.source in there and hop.target in there, f"{hop} was found of a node that is gone"
        for (ask, source), hops in self._under_way.items():
            assert hops and ask < self._next_ask, f"question {ask} is about nothing, or was never asked"
            assert all(hop.source == source and hop.target in there for hop in hops), f"{hops} are dialled for nobody"
        assert self._told.keys() <= self._nodes.keys(), "somebody was told of who is gone"
        assert all(breaks.count > 0 for breaks in self._breaks.values()), "a link is blamed for no break"

    # ------------------------------------------------------------ dialling

    def untried(self, order: Sequence[NodeId], now_s: float) -> tuple[Hop, ...]:
        """The hops of a route over these nodes that have not answered lately."""
        hops = [hop for name in order for hop in self._own_hops(self._nodes[name])]
        pairs = [self._hop(one, other) for one, other in pairwise(order)]
        return tuple(hop for hop in [*hops, *pairs] if not self._is_fresh(hop, now_s))

    def dial(self, hops: Iterable[Hop], now_s: float) -> list[Effect]:
        """Has every hop dialled by its source, unless that is under way."""
        busy = {hop for under_way in self._under_way.values() for hop in under_way}
        by_source: dict[NodeId, list[Hop]] = {}
        for hop in hops:
            if hop not in busy:
                by_source.setdefault(hop.source, []).append(hop)
        effects: list[Effect] = []
        for source, to_dial in by_source.items():
            ask = AskId(self._next_ask)
            self._next_ask += 1
            self._under_way[ask, source] = tuple(to_dial)
            effects += [self._order(ask, source, to_dial), SetTimer(("dial", ask, source), now_s + SCOUT_S)]
        return effects

    def answered(self, ask: AskId, source: NodeId, unanswered: Iterable[Unanswered], now_s: float) -> list[Effect]:
        """What `source` found. Empty and without effect when nobody had asked."""
        hops = self._under_way.pop((ask, source), ())
        faults = {one.addr: one.reason for one in unanswered}
        for hop in hops:
            self._findings[hop] = _Finding(faults.get(hop.addr, ""), now_s)
        return [CancelTimer(("dial", ask, source)), *self._look_again(now_s)] if hops else []

    def silent(self, ask: AskId, source: NodeId, now_s: float) -> list[Effect]:
        """It has not said what it found."""
        for hop in self._under_way.pop((ask, source), ()):
            self._findings[hop] = _Finding(NO_WORD, now_s)
        return self._look_again(now_s)

    def redial(self, now_s: float) -> list[Effect]:
        """Whoever did not answer is dialled again."""
        faulty = [hop for hop, finding in self._findings.items() if finding.fault]
        return [*self.dial(faulty, now_s), *self._look_again(now_s)]

    # ------------------------------------------------------------ breaks

    def broke(self, source: NodeId, target: NodeId, now_s: float, *, at_least_s: float = 0.0) -> float:
        """An epoch ended because of this link (HERE: the coordinator's end; a node with itself: because of the node).

        Returns the seconds of its quarantine, which begins with the second time, or is `at_least_s`.
        """
        breaks = self._breaks.setdefault((source, target), _Breaks())
        if now_s - breaks.last_s > FORGIVEN_S:
            breaks.count = 0
        breaks.count, breaks.last_s = breaks.count + 1, now_s
        quarantine_s = max(at_least_s, QUARANTINE_S[min(breaks.count, len(QUARANTINE_S)) - 1])
        breaks.until_s = now_s + quarantine_s
        addrs = {hop.addr for hop in self._hops_between(source, target)}
        for hop, finding in self._findings.items():
            if hop.addr in addrs:  # what swallowed the steps may stand before that address, whoever dials it
                finding.at_s = float("-inf")
        return quarantine_s

    def after_break(self, source: NodeId, target: NodeId, now_s: float) -> list[Effect]:
        """The link is dialled at once, so that a fault it has gets an address; and its quarantine will end."""
        return [*self.dial(self._hops_between(source, target), now_s), *self._look_again(now_s)]

    def _hops_between(self, source: NodeId, target: NodeId) -> list[Hop]:
        return [hop for hop in self._findings if (hop.source, hop.target) == (source, target)]

    # ------------------------------------------------------------ what plans may count on

    def fault_of(self, node: NodeId, now_s: float) -> str:
        """Why no plan may have this node; empty: nothing is known against it."""
        for hop in self._own_hops(self._nodes[node]):
            finding = self._findings.get(hop)
            if finding is None:
                return "the ways to it and from it are being tried"
            if finding.fault:
                return _sentence(hop, finding.fault)
        for link in ((HERE, node), (node, HERE)):
            left_s = self._quarantine_s(link, now_s)
            if left_s > 0:
                ends = "from" if link[0] == HERE else "to"
                return f"the link {ends} the coordinator broke again and again; in quarantine for {left_s:.0f} s"
        return ""

    def tried(self, node: NodeId) -> bool:
        """Whether all has been dialled that every stage needs, with whatever result."""
        return node in self._nodes and all(hop in self._findings for hop in self._own_hops(self._nodes[node]))

    def blocked(self, now_s: float) -> frozenset[tuple[NodeId, NodeId]]:
        """Pairs of nodes of which the first must not send to the second."""
        faulty = {(hop.source, hop.target) for hop, finding in self._findings.items() if finding.fault}
        kept_apart = {link for link in self._breaks if self._quarantine_s(link, now_s) > 0}
        return frozenset(link for link in faulty | kept_apart if HERE not in link and link[0] != link[1])

    def shaky(self, now_s: float) -> frozenset[NodeId]:
        """Nodes that two plans could not be made ready with: better done without, where that is possible."""
        return frozenset(
            one for one, other in self._breaks if one == other and self._quarantine_s((one, one), now_s) > 0
        )

    def sentence(self, now_s: float) -> str:
        """What keeps nodes out of plans, for people."""
        faults = {node: self.fault_of(node, now_s) for node in self._nodes}
        apart = [f"{one} cannot send to {other}" for one, other in sorted(self.blocked(now_s))]
        return "; ".join([*(f"{node}: {fault}" for node, fault in faults.items() if fault), *apart])

    def news(self, now_s: float) -> list[tuple[NodeJoined, str]]:
        """Nodes that can be counted on no more, or again, since this was asked last."""
        changed: list[tuple[NodeJoined, str]] = []
        for name, node in self._nodes.items():
            if not self.tried(name):
                continue
            fault = self.fault_of(name, now_s)
            former = self._told.get(name, "")
            if bool(fault) != bool(former):
                changed.append((node, fault))
            self._told[name] = fault
        return changed

    # ------------------------------------------------------------ inside

    def _own_hops(self, node: NodeJoined) -> list[Hop]:
        """What every stage needs, wherever in the route it sits."""
        hops = [Hop(HERE, node.node, node.pipeline_addr), Hop(node.node, HERE, self.results_addr)]
        return [*hops, Hop(node.node, HERE, self.store_addr, store=True)] if self.store_addr is not None else hops

    def _hop(self, source: NodeId, target: NodeId) -> Hop:
        return Hop(source, target, self._nodes[target].pipeline_addr)

    def _is_fresh(self, hop: Hop, now_s: float) -> bool:
        finding = self._findings.get(hop)
        return finding is not None and not finding.fault and now_s - finding.at_s <= FRESH_S

    def _order(self, ask: AskId, source: NodeId, hops: Sequence[Hop]) -> Effect:
        steps = tuple(hop.addr for hop in hops if not hop.store)
        if source == HERE:
            return DialOut(ask, steps)
        store = tuple(hop.addr for hop in hops if hop.store)
        return Send(Address(self._nodes[source].peer, SCOUT), Dial(ask=ask, step_addrs=steps, store_addrs=store))

    def _quarantine_s(self, link: tuple[NodeId, NodeId], now_s: float) -> float:
        breaks = self._breaks.get(link)
        return 0.0 if breaks is None else max(0.0, breaks.until_s - now_s)

    def _look_again(self, now_s: float) -> list[Effect]:
        """One timer for all that time alone may change."""
        due_s = [breaks.until_s for breaks in self._breaks.values() if breaks.until_s > now_s]
        if any(finding.fault for finding in self._findings.values()):
            due_s.append(now_s + REDIAL_S)
        return [SetTimer(REDIAL, min(due_s))] if due_s else []


def _sentence(hop: Hop, fault: str) -> str:
    if fault == NO_WORD:
        return fault
    if hop.source == HERE:
        loopback = is_loopback(host_of(hop.addr.addr))
        remedy = (
            " (from another machine: start it with --bind and --advertise an address of its own)" if loopback else ""
        )
        return f"the coordinator cannot reach it at {hop.addr}: {fault}{remedy}"
    lane = "the store" if hop.store else "the results"
    return f"it cannot reach {lane} of the coordinator at {hop.addr}: {fault}"
