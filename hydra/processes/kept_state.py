"""The coordinator's memory, kept as well as its disk allows: a cluster goes on without it.

`save` never raises and never waits for long. A thread writes, in order, and the latest state wins. Only a new term is
waited for, because nothing may be planned under a term that a later life could take again; so short a wait, and no
failure, stops a coordinator: a later life learns the highest term from the greetings of whoever has heard of it. What
could not be written is tried again every few seconds, and both is said, once: that it fails, and that it works again.
"""

import contextvars
import threading
import time
from collections.abc import Callable

import attrs
import structlog

from hydra.actors.families.coordinator import SavedState
from hydra.protocol.messages.models import Sample

TERM_WAIT_S = 2.0
RETRY_EVERY_S = 5.0

log = structlog.get_logger()


@attrs.define(eq=False)
class KeptState:
    """`write` makes a state durable, or raises OSError; it is called in one thread only."""

    write: Callable[[SavedState], None]
    term_wait_s: float = TERM_WAIT_S
    retry_every_s: float = RETRY_EVERY_S
    failures: int = attrs.field(default=0, init=False)
    _wanted: SavedState | None = attrs.field(default=None, init=False)  # not on disk yet
    _durable_term: int | None = attrs.field(default=None, init=False)
    _failing_since_s: float | None = attrs.field(default=None, init=False)
    _closed: bool = attrs.field(default=False, init=False)
    _ended: bool = attrs.field(default=False, init=False)  # the thread
    _changed: threading.Condition = attrs.field(factory=threading.Condition, init=False)

    def start(self) -> None:
        """A daemon thread: one that hangs in a write does not keep the process."""
        context = contextvars.copy_context()  # with the role that the log shows
        threading.Thread(target=context.run, args=(self._write_states,), name="state", daemon=True).start()

    def save(self, state: SavedState) -> None:
        """As soon as the disk allows; a state with a new term before this returns, if that takes no more than a moment.

        The moment is what the event loop can spare. A disk that is so slow counts as one that cannot be written.
        """
        with self._changed:
            self._wanted = state
            self._changed.notify_all()
            if state.term != self._durable_term and not self._failing:
                self._changed.wait_for(lambda: self._wanted is not state or self._failing, self.term_wait_s)

    def close(self, within_s: float) -> None:
        """The last state has so much time to be written, if the disk takes any; afterwards nothing is."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ended, within_s)

    def samples(self) -> tuple[Sample, ...]:
        """For the status and the metrics."""
        with self._changed:
            unwritten = self._wanted is not None
        return (
            Sample(
                name="hydra_state_unwritten",
                kind="gauge",
                help="1 while the coordinator's latest state is not on disk; the cluster goes on without.",
                value=int(unwritten),
            ),
            Sample(
                name="hydra_state_write_failures_total",
                kind="counter",
                help="Writes of the coordinator's state that failed.",
                value=self.failures,
            ),
        )

    @property
    def _failing(self) -> bool:
        return self._failing_since_s is not None

    def _write_states(self) -> None:
        while (state := self._next()) is not None:
            try:
                self.write(state)
            except OSError as error:
                self._failed(error)
            else:
                self._written(state)
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _next(self) -> SavedState | None:
        """The latest state: at once if none has failed, else after a while. None at the end."""
        with self._changed:
            if self._failing:
                self._changed.wait_for(lambda: self._closed, self.retry_every_s)
            self._changed.wait_for(lambda: self._wanted is not None or self._closed)
            if self._closed and (self._wanted is None or self._failing):
                return None
            return self._wanted

    def _failed(self, why: OSError) -> None:
        with self._changed:
            first = not self._failing
            if first:
                self._failing_since_s = time.monotonic()
            self.failures += 1
            self._changed.notify_all()
        if first:
            log.error(
                "the state cannot be written; the cluster goes on without",
                why=str(why),
                fix="free some space, or mend the directory: it is tried again every few seconds",
            )

    def _written(self, state: SavedState) -> None:
        with self._changed:
            since_s, self._failing_since_s = self._failing_since_s, None
            self._durable_term = state.term
            if self._wanted is state:
                self._wanted = None
            self._changed.notify_all()
        if since_s is not None:
            lasted_s = round(time.monotonic() - since_s, 1)
            log.warning("the state can be written again", failed_for_s=lasted_s, failures=self.failures)
