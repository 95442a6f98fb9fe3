"""The words all machines share: events that come in, effects that go out.

A machine is any object with `handle(event, now_s) -> list[Effect]`: no await, no clock, no randomness that was not
handed in. It may change its own private fields; everything that crosses its border is frozen (but for what is made
anew for every token, because that costs twice as much: nobody writes to it all the same). Effects that only one kind
of process can perform (loading a slice, sending a step) are defined beside their machine, not here.
"""

from collections.abc import Hashable
from typing import Any, Protocol, TypeAlias

import attrs

from hydra.protocol.ids import ActorName, Address
from hydra.protocol.messages import Message

TimerKey: TypeAlias = Hashable


# ---------------------------------------------------------------- events


@attrs.frozen
class Received:
    """Event: a message from another actor, here or elsewhere."""

    sender: Address
    message: Message


@attrs.frozen
class TimerFired:
    """Event: the time that was set for this key has come."""

    key: TimerKey


# ---------------------------------------------------------------- effects


@attrs.frozen
class Send:
    """Effect: a message to an actor, here or elsewhere."""

    to: Address
    message: Message


@attrs.frozen
class Tell:
    """Effect: a fact for an actor of the same process (it never travels on a wire)."""

    to: ActorName
    fact: Any


@attrs.frozen
class SetTimer:
    """Effect: fire `TimerFired(key)` at `at_s`; a timer of the same key is replaced."""

    key: TimerKey
    at_s: float


@attrs.frozen
class CancelTimer:
    """Effect: the timer of this key does not fire."""

    key: TimerKey


Event: TypeAlias = Any  # Received | TimerFired | whatever a machine's own file defines
Effect: TypeAlias = Any  # Send | Tell | SetTimer | CancelTimer | whatever a machine's own file defines


class Machine(Protocol):
    """Decides. Its host acts."""

    def handle(self, event: Event, now_s: float) -> list[Effect]: ...
