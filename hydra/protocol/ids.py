"""Names for the things that look alike.

An epoch, a generation, an attempt and a step are all integers; mixing two of them up is the kind of mistake that
loses a token. Here each gets a type of its own. Nothing in this file knows how a name is granted.
"""

from typing import NewType

import attrs

NodeId = NewType("NodeId", str)
"""What a person calls a node; survives a restart."""

PeerId = NewType("PeerId", str)
"""One process on the command lane: node id + a random nonce, so that a restarted node is a different peer."""

ActorName = NewType("ActorName", str)
"""An actor inside one process: "registry", "planner", "broker", "stage", "sessions", "parent"."""

RouteId = NewType("RouteId", int)
"""One version of one model laid over stages. A hot swap has two routes under one model id for a while."""

Generation = NewType("Generation", int)
"""Granted by the Registry at each accepted hello: the same node id in another life."""

SessionId = NewType("SessionId", int)
"""One generation of text, numbered by the frontend that serves it (unique within that peer)."""

RowId = NewType("RowId", int)
"""The Broker's number for one (session, attempt) on the data lane; never used twice within a term."""

Attempt = NewType("Attempt", int)
"""How often a session has been opened: raised by one at every replay."""

StepId = NewType("StepId", int)
"""Numbers the micro-batches of one (route, epoch), from 1, without gaps: it is also the link sequence."""

AskId = NewType("AskId", int)
"""Pairs an answer with its question within one peer."""

COORDINATOR = PeerId("coordinator")

TERM_MAX = (1 << 31) - 1
"""No cluster ever comes near it; it leaves room for `term * GENERATIONS_PER_TERM` and for the data lane's header."""


@attrs.frozen(order=True)
class Epoch:
    """A fence: whatever carries an older one is dropped. Ordered by term first, then by number.

    `term` grows with each life of the coordinator, `number` with each change of a route within that life.
    """

    term: int
    number: int

    def __str__(self) -> str:
        return f"{self.term}.{self.number}"


EPOCH_ZERO = Epoch(0, 0)


@attrs.frozen
class Address:
    """Where a message goes: an actor inside a process."""

    peer: PeerId
    actor: ActorName
