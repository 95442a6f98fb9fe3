"""What every transport keeps. Two implementations: memory (simulation) and ZeroMQ; one contract suite runs on both.

Command lane: a star. The coordinator's hub knows its peers by the id they connected with; a spoke knows only the hub.
Broadcast lane: beacons from the hub, may be lost. Data lane: one-way links that carry steps, one fresh link per
(epoch, next hop). Store lane: a hub wherever files are held, and short-lived lines to it. A wire moves frames; it does
not know messages, machines or retries.

Order holds per connection. Frames may be lost when a connection breaks and never arrive in part. Every queue is
bounded: a full one raises instead of waiting, and what is dropped is counted.
"""

from collections.abc import Awaitable, Callable
from typing import Literal, Protocol, TypeAlias

import attrs

from hydra.protocol.blob import Buffer, Frames
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.faults import WireError
from hydra.protocol.ids import PeerId

LaneName = Literal["steps", "store"]
Dialler: TypeAlias = Callable[[Endpoint, LaneName, float], Awaitable[str]]  # as Wires.dial

COMMAND_BOUND = 1000  # messages per connection of the command lane, unless the settings say otherwise
SPARE_STEPS = 2  # of a link beyond the steps in flight: a transport learns late of what has left its queue
STORE_BOUND = 16  # messages per connection of the store lane; an asker has far fewer questions open


class PeerGone(WireError):
    """The hub has no connection to that peer."""


class WireFull(WireError):
    """The bounded queue towards that peer is full; nothing was sent."""


class WireClosed(WireError):
    """This end was closed."""


class LineBroken(WireError):
    """This end's one connection is gone, or never came to be. There will be no other: open a new end."""


class AddressTaken(WireError):
    """Somebody else is bound to that address."""


@attrs.frozen
class Delivery:
    """One message as it came in. `peer` is the connection's own id, not what the message claims."""

    peer: PeerId
    frames: tuple[Buffer, ...]


class CommandHub(Protocol):
    """The coordinator's end of the command lane, plus the broadcast. The addresses are those really bound."""

    command_addr: str
    broadcast_addr: str

    def host_of(self, peer: PeerId) -> str:
        """The address from which it is connected; empty: from this machine, or nobody knows."""
        ...

    def send_nowait(self, peer: PeerId, frames: Frames) -> None:
        """Raises PeerGone, WireFull or WireClosed; never waits."""

    async def receive(self) -> list[Delivery]:
        """Everything that has arrived, at least one. Raises WireClosed."""

    def broadcast_nowait(self, frames: Frames) -> None:
        """To every spoke that listens; may be lost; never raises for slow ones."""

    def close(self) -> None: ...


class Spoke(Protocol):
    """Everybody else's end of the command lane, plus the broadcast it hears (both arrive through `receive`)."""

    peer: PeerId

    def send_nowait(self, frames: Frames) -> None:
        """Raises WireFull or WireClosed. Without a connection frames wait, up to the bound."""

    async def receive(self) -> list[Delivery]:
        """Deliveries from the hub (peer COORDINATOR); broadcasts among them. Raises WireClosed."""

    def close(self) -> None: ...


class StepSource(Protocol):
    """The receiving end of the data lane inside Trio: the Broker's results, or a simulated stage's inbox."""

    addr: str

    async def receive(self) -> list[tuple[Buffer, ...]]:
        """Everything that has arrived, at least one. Raises WireClosed."""

    def close(self) -> None: ...


class StepLink(Protocol):
    """The sending end of the data lane inside Trio: one per (epoch, next hop), bounded by the route's credits."""

    def send_nowait(self, frames: Frames) -> None:
        """Raises WireFull or WireClosed; never waits."""

    def close(self) -> None:
        """Drops what was not sent yet."""


class BlockingSource(Protocol):
    """The receiving end of the data lane for a compute thread. Not thread-safe except `wake`."""

    addr: str

    def receive(self, timeout_s: float) -> tuple[Buffer, ...] | None:
        """The next message, or None after a wake or the timeout."""

    def wake(self) -> None:
        """From any thread: makes a waiting `receive` return None soon."""

    def close(self) -> None: ...


class BlockingLink(Protocol):
    """The sending end of the data lane for a compute thread."""

    def try_send(self, frames: Frames) -> bool:
        """False when the queue is full or nobody is connected; never waits. Large frames are not copied."""

    def close(self) -> None: ...


class DataLane(Protocol):
    """Opens the ends of the data lane: Trio's ends in the coordinator, blocking ones in a worker's compute thread."""

    def step_source(self, addr: str, bound: int) -> StepSource: ...

    def step_link(self, to: Endpoint, bound: int) -> StepLink: ...

    def blocking_source(self, addr: str, bound: int) -> BlockingSource: ...

    def blocking_link(self, to: Endpoint, bound: int) -> BlockingLink: ...


def link_bound(credits: int) -> int:
    """How many steps a link's queue holds when so many may be in flight: it is full only when something is wrong."""
    return credits + SPARE_STEPS


class StoreHub(Protocol):
    """The end of the store lane that answers, inside Trio. `addr` is the address really bound."""

    addr: str

    def send_nowait(self, peer: PeerId, frames: Frames) -> None:
        """Raises PeerGone, WireFull or WireClosed; never waits. Large frames are not copied."""

    async def receive(self) -> list[Delivery]:
        """Everything that has arrived, at least one. Raises WireClosed."""

    def close(self) -> None: ...


class BlockingStoreLine(Protocol):
    """The end of the store lane that asks, for one thread. One connection, and never a second one.

    What was asked and not answered when it breaks is forgotten by both sides.
    """

    def send(self, frames: Frames) -> None:
        """Waits for the connection in the queue. Raises WireFull or LineBroken; never waits itself."""

    def receive(self, timeout_s: float) -> tuple[Buffer, ...] | None:
        """The next answer, or None when none came in time. Raises LineBroken once all that arrived is taken."""

    def close(self) -> None: ...


class StoreLane(Protocol):
    """Opens the ends of the store lane."""

    def store_hub(self, addr: str, bound: int = STORE_BOUND) -> StoreHub:
        """Raises AddressTaken."""

    def store_line(self, to: Endpoint, bound: int = STORE_BOUND) -> BlockingStoreLine: ...


class Wires(DataLane, StoreLane, Protocol):
    """All a process needs to open its ends of all lanes. `bound` is in messages, per connection."""

    def hub(self, command_addr: str, broadcast_addr: str, bound: int = COMMAND_BOUND) -> CommandHub:
        """Raises AddressTaken."""

    def spoke(self, peer: PeerId, command_addr: str, broadcast_addr: str, bound: int = COMMAND_BOUND) -> Spoke: ...

    async def dial(self, to: Endpoint, lane: LaneName, timeout_s: float) -> str:
        """Empty when an end of that lane answered there within the time; else why not, for people."""
        ...
