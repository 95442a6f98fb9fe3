"""The world of a simulation: lives, links, pipes, and the agenda on which messages fly between them.

Everything random comes from one generator and everything timed from Trio's clock, so a seed is a history. Every
message that was accepted is in one of three places: `sent == delivered + dropped + in_flight`. One task (`run`) moves
them all. What an end is for (hub, spoke, source, link) is known to `memory_wire` only.
"""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import attrs
import trio

from hydra.protocol.blob import Buffer

Taken = tuple[Buffer, ...]
Delay = Callable[[random.Random], float]


def uniform(low_s: float, high_s: float) -> Delay:
    """A delay drawn evenly between two bounds."""
    return lambda rng: rng.uniform(low_s, high_s)


@attrs.define
class Link:
    """How messages fare from one node to another. `drop` is the chance that a message breaks its connection."""

    delay: Delay = uniform(0.0001, 0.0005)
    drop: float = 0.0
    duplicate: float = 0.0
    cut: bool = False


@attrs.define(eq=False)
class Life:
    """One life of a node: ended by `kill`; the same name may live again."""

    name: str
    dead: bool = False
    paused: bool = False


class NetworkEnd(Protocol):
    """What the network knows of an end."""

    life: Life

    @property
    def n_outbox(self) -> int:
        """Accepted, and waiting for a connection."""

    def dial(self) -> None:
        """Try to connect, if this is an end that connects."""

    def wake(self) -> None:
        """The node may go on: look again at what has arrived."""

    def vanish(self, graceful: bool) -> None:
        """Leave the network: by closing, or by being killed."""


@attrs.define(eq=False)
class Pipe:
    """One direction of one connection. `flying` is in order; `waiting` counts the inbox too."""

    network: "MemoryNetwork"
    source: Life
    target: Life
    arrive: Callable[[Taken, "Pipe"], None]
    bound: int
    on_break: Callable[[], None] | None = None  # None: a loss is one message, not the connection (the broadcast)
    flying: deque[Taken] = attrs.field(factory=deque)
    waiting: int = 0
    held_back: int = 0  # sent by a paused source
    held_up: int = 0  # arrived at a paused target
    last_at: float = 0.0
    broken: bool = False

    @property
    def is_full(self) -> bool:
        return self.waiting >= self.bound

    def send(self, frames: Taken, counted: bool = False) -> None:
        """`counted`: it was accepted earlier, while there was no connection."""
        network = self.network
        link = network.link(self.source.name, self.target.name)
        network.sent += not counted
        if link.cut:
            network.dropped += 1
            return
        if link.drop and network.rng.random() < link.drop:
            network.dropped += 1
            if self.on_break:
                self.on_break()
            return
        self._launch(frames)
        if link.duplicate and network.rng.random() < link.duplicate:
            network.sent += 1
            self._launch(frames)

    def _launch(self, frames: Taken) -> None:
        self.flying.append(frames)
        self.waiting += 1
        if self.source.paused:
            self.held_back += 1
        else:
            self._schedule()

    def _schedule(self) -> None:
        self.last_at = self.network.later(self.source.name, self.target.name, self._land, self.last_at)

    def _land(self) -> None:
        if self.broken:
            return
        if self.target.paused:
            self.held_up += 1
            return
        frames = self.flying.popleft()
        if self.network.link(self.source.name, self.target.name).cut:
            self.waiting -= 1
            self.network.dropped += 1
            return
        self.network.delivered += 1
        self.arrive(frames, self)

    def resume(self) -> None:
        """Whichever end was paused goes on: what was held moves now, in order."""
        if not self.target.paused:
            held, self.held_up = self.held_up, 0
            for _ in range(held):
                self._land()
        if not self.source.paused:
            held, self.held_back = self.held_back, 0
            for _ in range(held):
                self._schedule()

    def snap(self) -> None:
        """The connection is gone, and with it what was in flight."""
        if not self.broken:
            self.broken = True
            self.network.dropped += len(self.flying)
            self.flying.clear()
            self.network.pipes.remove(self)


@attrs.define(eq=False)
class MemoryNetwork:
    """The world between the nodes. Start `run` in a nursery; open ends through `at(node)`."""

    rng: random.Random
    sent: int = 0
    delivered: int = 0
    dropped: int = 0
    default: Link = attrs.field(factory=Link)
    pipes: list[Pipe] = attrs.field(factory=list, init=False)
    ends: list[NetworkEnd] = attrs.field(factory=list, init=False)
    listeners: dict[str, Any] = attrs.field(factory=dict, init=False)
    ports: "itertools.count[int]" = attrs.field(factory=lambda: itertools.count(20001), init=False)
    _links: dict[tuple[str, str], Link] = attrs.field(factory=dict, init=False)
    _lives: dict[str, Life] = attrs.field(factory=dict, init=False)
    _agenda: list[tuple[float, int, Callable[[], None]]] = attrs.field(factory=list, init=False)
    _number: "itertools.count[int]" = attrs.field(factory=itertools.count, init=False)
    _news: trio.Event = attrs.field(factory=trio.Event, init=False)

    @property
    def in_flight(self) -> int:
        return sum(end.n_outbox for end in self.ends) + sum(len(pipe.flying) for pipe in self.pipes)

    async def run(self) -> NoReturn:
        """Moves messages for ever; cancel it to end the world."""
        while True:
            now = trio.current_time()
            while self._agenda and self._agenda[0][0] <= now:
                heapq.heappop(self._agenda)[2]()
            next_at = self._agenda[0][0] if self._agenda else math.inf
            self._news = trio.Event()
            with trio.CancelScope(deadline=next_at):
                await self._news.wait()

    # ------------------------------------------------ what a test may do to the world

    def link(self, source: str, target: str) -> Link:
        """The fortunes of one direction; change its fields at any time."""
        if (source, target) not in self._links:
            self._links[source, target] = attrs.evolve(self.default)
        return self._links[source, target]

    def cut(self, one: str, other: str, both: bool = True) -> None:
        """Nothing gets through from `one` to `other` (and back), in silence."""
        self.link(one, other).cut = True
        if both:
            self.link(other, one).cut = True

    def heal(self, one: str, other: str) -> None:
        """Both directions work again; what was swallowed stays lost."""
        self.link(one, other).cut = self.link(other, one).cut = False
        self.dial_all()

    def snap(self, one: str, other: str) -> None:
        """Every connection between the two breaks now, loses what is in flight, and dials again."""
        for pipe in list(self.pipes):
            if pipe.on_break and not pipe.broken and {pipe.source.name, pipe.target.name} == {one, other}:
                pipe.on_break()

    def kill(self, node: str) -> None:
        """All its traffic in both directions vanishes at once; what its tasks still say is not heard."""
        life = self._lives.pop(node, None)
        if life is not None:
            life.dead = True
            for end in [end for end in self.ends if end.life is life]:
                self.ends.remove(end)
                end.vanish(graceful=False)

    def pause(self, node: str) -> None:
        """Like SIGSTOP: what comes for it queues up, nothing leaves it, its `receive` does not return."""
        self.life(node).paused = True

    def resume(self, node: str) -> None:
        life = self.life(node)
        life.paused = False
        for pipe in list(self.pipes):
            if life in (pipe.source, pipe.target) and not pipe.broken:
                pipe.resume()
        for end in list(self.ends):
            if end.life is life:
                end.wake()
        self.dial_all()

    # ------------------------------------------------ for the ends

    def life(self, node: str) -> Life:
        """The life this node leads now; a new one after a kill."""
        return self._lives.setdefault(node, Life(node))

    def pipe(
        self,
        source: Life,
        target: Life,
        arrive: Callable[[Taken, Pipe], None],
        bound: int,
        on_break: Callable[[], None] | None,
    ) -> Pipe:
        opened = Pipe(self, source, target, arrive, bound, on_break)
        self.pipes.append(opened)
        return opened

    def dial_all(self) -> None:
        """Something became reachable, perhaps: everybody without a connection tries again."""
        for end in list(self.ends):
            end.dial()

    def call_at(self, at: float, action: Callable[[], None]) -> None:
        if not self._agenda or at < self._agenda[0][0]:
            self._news.set()
        heapq.heappush(self._agenda, (at, next(self._number), action))

    def later(self, source: str, target: str, action: Callable[[], None], not_before: float = 0.0) -> float:
        """Calls after the link's delay, drawn now; never earlier than `not_before`, so that order holds."""
        at = max(trio.current_time() + self.link(source, target).delay(self.rng), not_before)
        self.call_at(at, action)
        return at
