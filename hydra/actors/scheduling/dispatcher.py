"""Which route gets the next generation, where several work off one queue.

The least loaded route that has room: of equals the one that has been up the longest. A generation stays on its route;
only when that goes down, or takes its row away, it comes back to the queue. Knows rows and blocks as numbers.
"""

from collections.abc import Iterable

import attrs

from hydra.actors.core.facts import RouteUp
from hydra.actors.scheduling.fair_queue import FairQueue, Waiting
from hydra.actors.scheduling.scheduler import RouteScheduler


@attrs.define(eq=False)
class ActiveRoute:
    """A route that is up, and its scheduler. `serves`: a token came through in this epoch, or none was waited for."""

    up: RouteUp
    scheduler: RouteScheduler
    serves: bool = False

    def takes(self, waiting: Waiting, rows_max: int, *, to_spare: bool) -> bool:
        """Whether it has a row and blocks for it; `to_spare`: beside those kept for requests that have few rows. An
        empty route takes whatever is not too long for it.
        """
        opening, rows = waiting.open, len(self.scheduler.rows)
        if self.up.max_model_len and opening.prompt_tokens + opening.max_tokens > self.up.max_model_len:
            return False
        if not rows:
            return True
        return rows < rows_max and self.scheduler.has_room(len(opening.history), to_spare=to_spare)

    @property
    def load(self) -> float:
        """Rows per KV block: of two routes the larger one is given more."""
        return len(self.scheduler.rows) / max(1, self.up.kv_blocks)


def dispatch(queue: FairQueue, routes: Iterable[ActiveRoute], rows_max: int) -> tuple[Waiting, ActiveRoute] | None:
    """Whose turn it is and where, if there is room for it; `rows_max` is for each route.

    Nobody overtakes a long prompt that waits for blocks, but for those who may have the kept ones.
    """
    by_load = sorted(routes, key=lambda route: route.load)
    for scarce in (False, True):
        waiting = queue.next(memory_is_scarce=scarce)
        if waiting is None:
            continue
        route = next((route for route in by_load if route.takes(waiting, rows_max, to_spare=not scarce)), None)
        if route is not None:
            return waiting, route
    return None
