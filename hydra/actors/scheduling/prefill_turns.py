"""In which order prompts are computed: first come, first served, but in turns of a bounded length.

A step has room for so many tokens of prompts. A request that was given TURN_TOKENS of them stands behind the other
requests of its owner, and so does an owner behind other owners. So a prompt of any length, or any number of prompts,
holds up the others for no longer than a turn, while prompts of an ordinary length are through in the order in which
they came. It decides neither lengths nor who may have a row.
"""

from itertools import zip_longest

import attrs

from hydra.actors.scheduling.row import RequestKey, Row
from hydra.protocol.ids import RowId

TURN_TOKENS = 1024  # two steps of the usual size


@attrs.define(eq=False)
class _Request:
    """The rows of one request, in the order in which they were added."""

    rows: dict[RowId, Row] = attrs.field(factory=dict)
    used: int = 0  # tokens in this turn


@attrs.define(eq=False)
class _Owner:
    """The requests of one owner; the one whose turn it is stands first."""

    requests: dict[RequestKey, _Request] = attrs.field(factory=dict)
    used: int = 0


@attrs.define(eq=False)
class PrefillTurns:
    """Rows whose prompts are not computed yet. Whose turn it is stands first."""

    _owners: dict[str, _Owner] = attrs.field(factory=dict, init=False)
    _count: int = attrs.field(default=0, init=False)

    def __len__(self) -> int:
        return self._count

    def add(self, row: Row) -> None:
        """Behind its request's other rows, and a new request behind all others of its owner."""
        owner = self._owners.setdefault(row.open.owner, _Owner())
        owner.requests.setdefault(row.request, _Request()).rows[row.row] = row
        self._count += 1

    def remove(self, row: Row) -> None:
        """It waits no more, if it did."""
        owner = self._owners.get(row.open.owner)
        request = owner.requests.get(row.request) if owner is not None else None
        if owner is None or request is None or request.rows.pop(row.row, None) is None:
            return
        self._count -= 1
        if not request.rows:
            del owner.requests[row.request]
        if not owner.requests:
            del self._owners[row.open.owner]

    def check(self) -> None:
        """The count is that of the rows; nobody stands here with none, or has had more than a turn. AssertionError."""
        requests = [request for owner in self._owners.values() for request in owner.requests.values()]
        assert self._count == sum(len(request.rows) for request in requests), "rows are counted that are not here"
        assert all(request.rows for request in requests), "a request stands here without rows"
        assert all(owner.requests for owner in self._owners.values()), "an owner stands here without requests"
        used = [request.used for request in requests] + [owner.used for owner in self._owners.values()]
        assert all(0 <= tokens < TURN_TOKENS for tokens in used), "somebody had more than a turn"

    def rows(self) -> list[Row]:
        """All, in the order in which they are to be given tokens of the next step."""
        owners = self._owners.values()
        return _in_turn([_in_turn([list(one.rows.values()) for one in owner.requests.values()]) for owner in owners])

    def served(self, row: Row, tokens: int) -> None:
        """It was given so many tokens of a step. Who has had a turn goes behind the others."""
        owner = self._owners[row.open.owner]
        request = owner.requests[row.request]
        request.used += tokens
        owner.used += tokens
        if request.used >= TURN_TOKENS:
            request.used = 0
            owner.requests[row.request] = owner.requests.pop(row.request)
        if owner.used >= TURN_TOKENS:
            owner.used = 0
            self._owners[row.open.owner] = self._owners.pop(row.open.owner)


def _in_turn(lines: list[list[Row]]) -> list[Row]:
    """The first of each line, then the second of each, and so on."""
    if len(lines) == 1:
        return lines[0]
    return [row for some in zip_longest(*lines) for row in some if row is not None]
