"""An entry of the journal as a line of this process's log: its sentence for people, its fields for programs."""

from typing import Any

import structlog

from hydra.protocol.journal_text import fields_of, sentence_of
from hydra.protocol.messages.journal import JournalEntry, JournalKind

log = structlog.get_logger()

_WARNINGS: frozenset[JournalKind] = frozenset(
    {
        "lost", "suspect", "unusable", "turned_away", "load_failed", "route_down", "model_stalled", "model_gone",
        "cut_off", "child_died", "session_refused", "entries_lost",
    }
)  # fmt: skip
_QUIET: frozenset[JournalKind] = frozenset({"slice_ready", "activating", "session_reopened", "session_refused"})


def log_entry(entry: JournalEntry) -> None:
    """The event is the kind; `text` is the sentence, which is all that a terminal shows."""
    fields = fields_of(entry)
    kind = fields.pop("kind")
    level = "error" if kind == "child_given_up" else "warning" if entry.kind in _WARNINGS else "info"
    if entry.kind in _QUIET:
        level = "debug"
    getattr(log, level)(kind, text=sentence_of(entry), **_apart(fields))


def _apart(fields: dict[str, Any]) -> dict[str, Any]:
    """A line's `role` and `node` are those of the process that writes it."""
    renamed = {"role": "of_role", "node": "of_node"}
    return {renamed.get(name, name): value for name, value in fields.items()}
