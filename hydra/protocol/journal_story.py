"""How a pause reads: from the last token before it to the first one after, a few lines that cover it whole. Pure.

Each line has the time since the one before it, so the steps add up to the pause. It reads entries and asks nobody; it
does not know which of them are still to come.
"""

from collections.abc import Iterable, Sequence

import attrs

from hydra.protocol.journal_text import layers_of, sentence_of, session_name
from hydra.protocol.messages.journal import JournalKind, RecordedEntry

LINES_MAX = 12
SAME_MOMENT_S = 0.05  # so far apart the clocks of two processes may seem: what came on the way is a little older
LATE_BEAT_S = 1.0  # a suspect that goes on computes at once; its next heartbeat says so a little later
# In the order in which they stand when they fell into one moment.
_TOLD: tuple[JournalKind, ...] = (
    "child_died",
    "child_started",
    "coordinator_began",
    "suspect",
    "recovered",
    "lost",
    "left",
    "joined",
    "unusable",
    "route_down",
    "session_interrupted",
    "model_stalled",
    "planned",
    "load_failed",
    "slice_loaded",
    "route_up",
    "session_refused",
    "session_resumed",
)
_MERGED: frozenset[JournalKind] = frozenset({"joined", "slice_loaded"})  # one line for all nodes of an epoch


@attrs.frozen(kw_only=True)
class Pause:
    """Of one session. `until_s` is None while it lasts."""

    process: str
    session: int
    model_id: str
    from_s: float
    until_s: float | None

    def covers(self, recorded: RecordedEntry) -> bool:
        """Whether an entry of the cluster, not of a session, belongs to it."""
        entry = recorded.entry
        if entry.session is not None or entry.model_id not in ("", self.model_id):
            return False
        late_s = LATE_BEAT_S if entry.kind == "recovered" else SAME_MOMENT_S
        began = self.from_s - SAME_MOMENT_S <= recorded.time_s
        return began and (self.until_s is None or recorded.time_s <= self.until_s + late_s)


@attrs.frozen(kw_only=True)
class StoryLine:
    time_s: float
    step_s: float  # since the line before it
    text: str


def matches_session(recorded: RecordedEntry, session: str) -> bool:
    """`session` is a response id, or a number that a frontend gave."""
    entry = recorded.entry
    return entry.session is not None and session in (entry.response_id, str(entry.session))


def pauses_of(own: Iterable[RecordedEntry]) -> list[Pause]:
    """Of sessions' own entries, oldest first, each pause that was interrupted or ended."""
    open_pauses: dict[tuple[str, int], Pause] = {}
    pauses: list[Pause] = []
    for recorded in sorted(own, key=lambda one: one.id):
        entry = recorded.entry
        if entry.session is None or entry.kind not in ("session_interrupted", "session_resumed", "session_refused"):
            continue
        key = (recorded.process, int(entry.session))
        ends = entry.kind != "session_interrupted"
        begun = open_pauses.pop(key, None)
        if entry.kind == "session_refused" and begun is None:
            continue
        from_s = recorded.time_s - (entry.took_s or 0.0)
        if begun is not None:
            from_s = begun.from_s if entry.kind == "session_refused" else min(begun.from_s, from_s)
        pause = Pause(
            process=recorded.process,
            session=int(entry.session),
            model_id=entry.model_id,
            from_s=from_s,
            until_s=recorded.time_s if ends else None,
        )
        if ends:
            pauses.append(pause)
        else:
            open_pauses[key] = pause
    return sorted([*pauses, *open_pauses.values()], key=lambda pause: pause.from_s)


def stories_of(entries: Sequence[RecordedEntry], session: str) -> list[list[StoryLine]]:
    """One story for each pause of a session, in order."""
    own = [recorded for recorded in entries if matches_session(recorded, session)]
    return [_story(entries, own, pause) for pause in pauses_of(own)]


def _story(entries: Sequence[RecordedEntry], own: Sequence[RecordedEntry], pause: Pause) -> list[StoryLine]:
    mine = [one for one in own if one.process == pause.process and one.entry.session == pause.session]
    until_s = pause.until_s if pause.until_s is not None else float("inf")
    covered = [one for one in entries if pause.covers(one) and _is_told(one)]
    covered += [one for one in mine if pause.from_s <= one.time_s <= until_s and one.entry.kind in _TOLD]
    shown = next((one.entry.tokens for one in mine if one.entry.kind == "session_interrupted" and one in covered), 0)
    behind = f", {shown} shown" if shown else ""
    moments = [(pause.from_s, f"the last token of {session_name(mine[0].entry)} before the pause{behind}")]
    groups: dict[object, list[RecordedEntry]] = {}
    for one in sorted(covered, key=lambda one: (min(one.time_s, until_s), _TOLD.index(one.entry.kind), one.id)):
        merged = one.entry.kind in _MERGED
        groups.setdefault((one.entry.kind, one.entry.epoch) if merged else one.id, []).append(one)
    moments += [(group[-1].time_s, _line(group, entries)) for group in groups.values()]
    return _fold(_steps(moments, until_s))


def _is_told(recorded: RecordedEntry) -> bool:
    """A worker's end is told by the coordinator; nobody else tells of the coordinator's own."""
    entry = recorded.entry
    if entry.kind in ("child_died", "child_started"):
        return entry.role in ("coordinator", "frontend")
    return entry.kind in _TOLD


def _line(group: Sequence[RecordedEntry], entries: Sequence[RecordedEntry]) -> str:
    entry = group[0].entry
    if entry.kind == "planned":
        loading = [e.entry for e in entries if e.entry.kind == "slice_loading" and e.entry.epoch == entry.epoch]
        shares = {e.node: f"{e.node} {layers_of(e)}" for e in loading}
        return sentence_of(attrs.evolve(entry, nodes=tuple(shares.get(node, node) for node in entry.nodes)))
    if len(group) == 1:
        return sentence_of(entry)
    names = dict.fromkeys(recorded.entry.node for recorded in group)
    if entry.kind == "joined":
        return f"joined: {', '.join(names)}"
    took = max((recorded.entry.took_s or 0.0 for recorded in group), default=0.0)
    return f"{', '.join(names)} hold their layers for epoch {entry.epoch}, the last in {took:.2f} s"


def _steps(moments: list[tuple[float, str]], until_s: float) -> list[StoryLine]:
    """In order, none outside the pause: what seems to be by a few milliseconds is a matter of clocks."""
    from_s, lines = moments[0][0], []
    before_s = from_s
    for time_s, text in [moments[0], *sorted(moments[1:], key=lambda moment: min(moment[0], until_s))]:
        within_s = min(max(time_s, from_s), until_s)
        lines.append(StoryLine(time_s=within_s, step_s=within_s - before_s, text=text))
        before_s = within_s
    return lines


def _fold(lines: list[StoryLine]) -> list[StoryLine]:
    """At most LINES_MAX: the middle of a long story becomes one line, with all its time."""
    if len(lines) <= LINES_MAX:
        return lines
    head, tail = lines[: LINES_MAX // 2], lines[LINES_MAX // 2 - LINES_MAX + 1 :]
    hidden = lines[len(head) : len(lines) - len(tail)]
    text = f"({len(hidden)} more; without --session they are all shown)"
    folded = StoryLine(time_s=hidden[-1].time_s, step_s=sum(line.step_s for line in hidden), text=text)
    return [*head, folded, *tail]
