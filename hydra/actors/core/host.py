"""The only shell: it carries events to machines and performs what they ask for.

An ActorHost has the actors of one process. Posting an event runs its machine at once; events that arise then queue
behind it, so one event is handled whole before the next and a message to a sibling costs no task switch. One task
keeps the timers; after a standstill of the whole process they wait until the mail that came meanwhile is read, or a
coordinator that was stopped would take everybody for silent. A machine that raises has a bug: the exception leaves
`post`, ends the process's nursery, and the parent starts a fresh process.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import attrs
import structlog
import trio

from hydra.actors.core.facts import Undelivered
from hydra.actors.core.machine import (
    CancelTimer,
    Effect,
    Event,
    Machine,
    Received,
    Send,
    SetTimer,
    Tell,
    TimerFired,
    TimerKey,
)
from hydra.actors.core.names import JOURNAL_NAME
from hydra.protocol.ids import ActorName, Address, PeerId
from hydra.protocol.messages import Message
from hydra.protocol.messages.journal import JournalEntry

LATE_S, MAIL_FIRST_S = 0.25, 0.1  # a timer later than this tells of a standstill; how long the mail then has
MAILBOX_MAX = 100_000  # events waiting inside one turn; more means two actors feed each other without end

Perform: TypeAlias = Callable[[Effect], None]
# (to, sending actor, message), to another process. What can never arrive comes back to the sender.
Carry: TypeAlias = Callable[[Address, ActorName, Message], Undelivered | None]

# (actor, event, its effects, now): what of this turn belongs into the journal. It changes nothing.
Observe: TypeAlias = Callable[[ActorName, Event, Sequence[Effect], float], Iterable[JournalEntry]]

log = structlog.get_logger()


def observe_nothing(
    actor: ActorName, event: Event, effects: Sequence[Effect], now_s: float
) -> tuple[JournalEntry, ...]:
    """No machine's turn is worth an entry."""
    return ()


@attrs.define
class HostedActor:
    """One machine with its name and with the effects only its process can perform."""

    name: ActorName
    machine: Machine
    perform: Perform


@attrs.define(eq=False)
class ActorHost:
    """The actors of one process, their mailbox and their timers."""

    peer: PeerId
    carry: Carry
    observe: Observe = observe_nothing
    inspect: Callable[[Machine], None] | None = None  # called with a machine after each event that it has handled
    _cells: dict[ActorName, HostedActor] = attrs.field(factory=dict, init=False)
    _mail: deque[tuple[ActorName, Event]] = attrs.field(factory=deque, init=False)
    _draining: bool = attrs.field(default=False, init=False)
    _due: list[tuple[float, int, ActorName, TimerKey]] = attrs.field(factory=list, init=False)
    _timers: dict[tuple[ActorName, TimerKey], tuple[float, int]] = attrs.field(factory=dict, init=False)
    _serial: int = attrs.field(default=0, init=False)
    _sleeper: trio.CancelScope | None = attrs.field(default=None, init=False)

    def add(self, name: ActorName, machine: Machine, perform: Perform) -> None:
        assert name not in self._cells, f"two actors called {name}"
        self._cells[name] = HostedActor(name, machine, perform)

    def has(self, name: ActorName) -> bool:
        return name in self._cells

    def post(self, to: ActorName, event: Event) -> None:
        """Handle `event` now, or right after the one in hand. Mail for an unknown actor is logged and dropped."""
        assert len(self._mail) < MAILBOX_MAX, "the mailbox is full: two actors feed each other"
        self._mail.append((to, event))
        if self._draining:
            return
        self._draining = True
        try:
            while self._mail:
                self._turn(*self._mail.popleft())
        finally:
            self._draining = False

    def receive(self, to: ActorName, sender: Address, message: Message) -> None:
        self.post(to, Received(sender, message))

    def _turn(self, name: ActorName, event: Event) -> None:
        cell = self._cells.get(name)
        if cell is None:
            log.warning("mail for nobody", actor=name, event_kind=type(event).__name__)
            return
        now_s = trio.current_time()
        effects = cell.machine.handle(event, now_s)
        for entry in self.observe(name, event, effects, now_s):
            self._turn(JOURNAL_NAME, entry)  # before anything comes of it: a log reads in the order of causes
        for effect in effects:
            self._act(cell, effect)
        if self.inspect is not None:
            self.inspect(cell.machine)

    def _act(self, cell: HostedActor, effect: Effect) -> None:
        match effect:
            case Send(to=to, message=message) if to.peer == self.peer:
                self._mail.append((to.actor, Received(Address(self.peer, cell.name), message)))
            case Send(to=to, message=message):
                undelivered = self.carry(to, cell.name, message)
                if undelivered is not None:
                    self._mail.append((cell.name, undelivered))
            case Tell(to=to, fact=fact):
                self._mail.append((to, fact))
            case SetTimer(key=key, at_s=at_s):
                self._set_timer(cell.name, key, at_s)
            case CancelTimer(key=key):
                self._timers.pop((cell.name, key), None)
            case _:
                cell.perform(effect)

    def _set_timer(self, name: ActorName, key: TimerKey, at_s: float) -> None:
        self._serial += 1
        self._timers[name, key] = (at_s, self._serial)
        heapq.heappush(self._due, (at_s, self._serial, name, key))
        if self._sleeper is not None and self._due[0][1] == self._serial:
            self._sleeper.cancel()  # the new timer is the nearest one

    async def keep_timers(self) -> None:
        """Run for as long as the host does."""
        while True:
            if self._due and trio.current_time() - self._due[0][0] > LATE_S:
                await trio.sleep(MAIL_FIRST_S)
            self._fire(trio.current_time())
            with trio.CancelScope() as self._sleeper:
                if self._due:
                    await trio.sleep_until(self._due[0][0])
                else:
                    await trio.sleep_forever()
            self._sleeper = None

    def _fire(self, now_s: float) -> None:
        while self._due and self._due[0][0] <= now_s:
            _, serial, name, key = heapq.heappop(self._due)
            if self._timers.get((name, key), (0.0, 0))[1] == serial:
                del self._timers[name, key]
                self.post(name, TimerFired(key))
