"""One session while it is open on a route, as a route's scheduler keeps it between steps.

It remembers what was composed and what came back. It knows no blocks (the ledger does) and no other row.
"""

import attrs

from hydra.actors.core.suspicion import DEATHS_MAX, SOLITARY_TOKENS
from hydra.protocol.batch import Int32Column
from hydra.protocol.ids import PeerId, RowId, SessionId
from hydra.protocol.messages.generations import Open
from hydra.protocol.sampled_token import FinishReason


@attrs.frozen
class RowKey:
    """Whose row it is: the frontend and its session."""

    peer: PeerId
    session: SessionId


RequestKey = tuple[PeerId, int, str]


def request_of(key: RowKey, opening: Open) -> RequestKey:
    """The request a generation belongs to. One without a number stands for itself; sessions are numbered from 1."""
    return (key.peer, opening.request or -key.session, opening.owner)


@attrs.define(eq=False)
class Row:
    """A session while it is open on this route."""

    row: RowId
    key: RowKey
    open: Open
    arrival: int  # order of first opening: the older keeps its blocks when they run out
    position: int = 0  # tokens composed into steps so far
    last_id: int = -1
    generated: int = 0  # over all attempts
    generated_here: int = 0  # in this attempt
    shares: bool = True  # may begin with blocks that another row has filled
    cached: int = 0  # tokens in such blocks
    finish: FinishReason | None = None  # why its last token is the last
    waits_for_token: bool = False
    announced: bool = False
    in_flight: int = 0
    pledged: int = 0  # blocks that its history will come to take
    request: RequestKey = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.request = request_of(self.key, self.open)

    @property
    def history(self) -> Int32Column:
        """What it was opened with: the prompt, and what an earlier attempt has added."""
        return self.open.history

    @property
    def solitary(self) -> bool:
        return self.open.deaths >= DEATHS_MAX and self.generated_here < SOLITARY_TOKENS
