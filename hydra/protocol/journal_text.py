"""How an entry of the journal reads: one sentence, the same in the log, in `events` and in a story. Pure.

Promises a line without line ends for every kind. It does not know when an entry was written, nor by which process.
"""

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from hydra.protocol.messages.journal import JournalEntry, JournalKind


def layers_of(entry: JournalEntry) -> str:
    """ "layers 0-4": both ends included."""
    if entry.first_layer is None or entry.end_layer is None:
        return "its layers"
    return f"layers {entry.first_layer}-{entry.end_layer - 1}"


def session_name(entry: JournalEntry) -> str:
    """As its reader knows it, else by its number."""
    return entry.response_id or f"session {entry.session}"


def _reason(entry: JournalEntry, before: str = " (", behind: str = ")") -> str:
    return f"{before}{entry.reason}{behind}" if entry.reason else ""


def _took(entry: JournalEntry, before: str = " in ", behind: str = "") -> str:
    return f"{before}{entry.took_s:.2f} s{behind}" if entry.took_s is not None else ""


def _answers(count: int) -> str:
    return "1 answer" if count == 1 else f"{count} answers"


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"


def _epoch(entry: JournalEntry) -> str:
    of_model = f" of {entry.model_id}" if entry.model_id else ""
    return f"epoch {entry.epoch}{of_model}"


def _resumed(entry: JournalEntry) -> str:
    replay = f": {_tokens(entry.tokens)} computed again" if entry.tokens else ", nothing computed again"
    return f"{session_name(entry)} goes on{_took(entry, ' after ')}{replay}"


def _route_down(entry: JournalEntry) -> str:
    wait = f", {_answers(entry.count)} {'waits' if entry.count == 1 else 'wait'}"
    return f"route {entry.route} of {entry.model_id} is down{_reason(entry, ': ', '')}{wait}"


def _refused(entry: JournalEntry) -> str:
    more = f", and {entry.count - 1} more since the last such line" if entry.count > 1 else ""
    return f"{session_name(entry)} ends with an error{_reason(entry)}{more}"


def _name(entry: JournalEntry) -> str:
    return f"the {entry.node}" if entry.node == entry.role else entry.node


_SENTENCES: Mapping[JournalKind, Callable[[JournalEntry], str]] = {
    "coordinator_began": lambda e: f"the coordinator began its term {e.count}",
    "joined": lambda e: f"joined: {_name(e)}",
    "left": lambda e: f"{_name(e)} left{_reason(e)}",
    "lost": lambda e: f"lost {_name(e)}{_reason(e)}",
    "suspect": lambda e: f"suspect {e.node}{_took(e, ' (no heartbeat for ', ')')}",
    "recovered": lambda e: f"{e.node} is heard again{_took(e, ' after ')}",
    "unusable": lambda e: f"{e.node} cannot be counted on{_reason(e)}",
    "usable": lambda e: f"{e.node} can be used",
    "turned_away": lambda e: f"turned away {e.node}{_reason(e)}",
    "planned": lambda e: f"planned {_epoch(e)} over {', '.join(e.nodes)}{_reason(e)}",
    "slice_loading": lambda e: f"{e.node} loads {layers_of(e)} for epoch {e.epoch}",
    "slice_loaded": lambda e: f"{e.node} holds its layers for epoch {e.epoch}{_took(e)}",
    "load_failed": lambda e: f"{e.node} cannot be made ready for epoch {e.epoch}{_reason(e)}",
    "activating": lambda e: f"{e.node} makes its KV pool for epoch {e.epoch}",
    "slice_ready": lambda e: f"{e.node} is ready for epoch {e.epoch}",
    "route_up": lambda e: f"route {e.route} of {e.model_id} is up in epoch {e.epoch}{_took(e, ', ', ' after it went')}",
    "route_down": _route_down,
    "model_stalled": lambda e: f"{e.model_id} has no plan{_reason(e)}",
    "model_gone": lambda e: f"the answers of {e.model_id} end{_reason(e)}",
    "stale_dropped": lambda e: f"{e.node} refused {e.count} steps or results of a former epoch",
    "cut_off": lambda e: f"{_name(e)} is outside until it is welcomed again{_reason(e)}",
    "child_started": lambda e: f"started {_name(e)} (pid {e.pid})",
    "child_died": lambda e: f"{_name(e)} died{_reason(e)}",
    "child_given_up": lambda e: f"{_name(e)} is given up{_reason(e)}",
    "child_ended": lambda e: f"{_name(e)} ended{_reason(e)}",
    "session_interrupted": lambda e: (
        f"{session_name(e)} waits: {e.reason}, {_tokens(e.tokens)} shown{_took(e, ', the last one ', ' before')}"
    ),
    "session_reopened": lambda e: f"{session_name(e)} asks again, with {_tokens(e.tokens)}",
    "session_resumed": _resumed,
    "session_refused": _refused,
    "entries_lost": lambda e: f"{e.count} entries of {e.node} never came",
}


def sentence_of(entry: JournalEntry) -> str:
    """Whatever stands in its fields: nothing of it moves a terminal's cursor."""
    sentence = _SENTENCES[entry.kind](entry)
    return " ".join("".join(char if char.isprintable() else " " for char in sentence).split())


def fields_of(entry: JournalEntry) -> dict[str, Any]:
    """What is filled in, as it may stand in a line of JSON."""
    defaults = {field.name: field.default for field in attrs.fields(JournalEntry)}
    values = {name: getattr(entry, name) for name in defaults}
    filled = {name: value for name, value in values.items() if value != defaults[name]}
    if "epoch" in filled:
        filled["epoch"] = str(filled["epoch"])
    return filled
