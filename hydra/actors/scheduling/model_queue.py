"""One served model's queue, and the routes that work it off. A record; the Broker decides what is done with it."""

import math

import attrs

from hydra.actors.scheduling.dispatcher import ActiveRoute
from hydra.actors.scheduling.fair_queue import FairQueue
from hydra.actors.scheduling.row import Row
from hydra.protocol.ids import RouteId
from hydra.protocol.refusal import Refusal


@attrs.define(eq=False)
class ModelQueue:
    model_id: str
    max_model_len: int
    waiting: FairQueue
    routes: dict[RouteId, ActiveRoute] = attrs.field(factory=dict)
    stalled: Refusal | None = None  # why new work is not taken now

    @property
    def rows(self) -> list[Row]:
        """On all routes."""
        return [row for route in self.routes.values() for row in route.scheduler.rows.values()]

    def counts(self) -> tuple[int, int, int, int]:
        """(KV blocks total, KV blocks free, running, waiting)."""
        ledgers = [route.scheduler.ledger for route in self.routes.values()]
        total, free = sum(ledger.blocks_total for ledger in ledgers), sum(ledger.blocks_free for ledger in ledgers)
        return (total, free, len(self.rows), len(self.waiting))

    def last_token_s(self) -> float:
        """When a token came through on any route; minus infinity: none has yet."""
        times = [route.scheduler.last_token_s for route in self.routes.values()]
        return max((at_s for at_s in times if at_s is not None), default=-math.inf)

    def check(self) -> None:
        """A generation is in one place, and each route under its own number. Raises AssertionError."""
        keys = [row.key for row in self.rows]
        assert len(set(keys)) == len(keys), "a generation runs twice"
        assert not set(keys) & {waiting.key for waiting in self.waiting}, "a generation runs and waits"
        assert all(route.up.route == number for number, route in self.routes.items())
