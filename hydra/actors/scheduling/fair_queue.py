"""Who gets the next row of a model. Rows are shared fairly between API keys, and within a key between requests.

The next row goes to a replay if one waits, the oldest first; else to the owner (the API key) with the fewest rows, of
its requests to the one with the fewest rows, and among equals to whoever came first. No row is taken away again: a
request that came alone keeps what it has, and as its rows end the others catch up (max-min fairness).

So that nobody has to wait for a row to end only because one request came first, an eighth of the rows is kept. While no
more than that eighth is free, a row is given only

- to a request that holds fewer than a quarter of that eighth,
- of an owner that holds less than its equal part of all rows. An owner that is alone has all of them.

The same holds for the last eighth of the KV blocks (the Broker says when it comes to these). Places in the queue are
bounded likewise: the last eighth is for requests and API keys that have few places (a quarter of that eighth). All
generations without a key have one owner in common, who gets an owner's part of the rows; but of places in the queue,
where being one too many is an error, each of its requests has its own.

It knows no route, no tokens and no blocks, and sends nothing. All costs are O(log n), and nothing when nothing changed.
"""

from collections.abc import Iterator

import attrs

from hydra.actors.scheduling.ranking import Ranking
from hydra.actors.scheduling.row import RequestKey, RowKey, request_of
from hydra.protocol.messages.generations import Open
from hydra.protocol.refusal import Refusal


def places_kept(places: int) -> int:
    """What is kept of so many rows, places or blocks for those who have few: an eighth, rounded."""
    return (places + 4) // 8


def few_of(places: int) -> int:
    """How much one request may hold and still be given of the reserve."""
    return max(1, places_kept(places) // 4)


@attrs.define(eq=False)
class Waiting:
    """A generation that has no row yet."""

    key: RowKey
    open: Open
    arrival: int
    request: RequestKey = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.request = request_of(self.key, self.open)


@attrs.define(eq=False)
class _Owner:
    """The rows and the waiting requests of one API key."""

    name: str
    rows: int = 0
    places: int = 0
    requests: "Ranking[_Request]" = attrs.field(factory=Ranking)  # without replays: (rows, arrival of its oldest)


@attrs.define(eq=False)
class _Request:
    """The rows and the waiting generations of one request."""

    key: RequestKey
    owner: _Owner
    rows: int = 0
    line: Ranking[RowKey] = attrs.field(factory=Ranking)  # (is it new work?, arrival)


@attrs.define(eq=False)
class FairQueue:
    """The generations of one model that wait, and who holds how many rows."""

    rows_max: int
    places_max: int
    _waiting: dict[RowKey, Waiting] = attrs.field(factory=dict, init=False)
    _running: dict[RowKey, _Request] = attrs.field(factory=dict, init=False)
    _requests: dict[RequestKey, _Request] = attrs.field(factory=dict, init=False)  # with rows or in the queue
    _owners: dict[str, _Owner] = attrs.field(factory=dict, init=False)  # likewise
    _fair: Ranking[_Owner] = attrs.field(factory=Ranking, init=False)  # (rows, rows of its first request, arrival)
    _replays: Ranking[_Request] = attrs.field(factory=Ranking, init=False)  # whose oldest replay came when
    _next: dict[bool, Waiting | None] = attrs.field(factory=dict, init=False)  # what `next` found; see there

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._waiting.values())

    # ------------------------------------------------------------ waiting

    def refusal(self, waiting: Waiting) -> Refusal | None:
        """Why there is no place for new work of this request; a replay is never asked."""
        places = len(self._waiting)
        if places < self.places_max - places_kept(self.places_max):
            return None
        request, owner = self._requests.get(waiting.request), self._owners.get(waiting.open.owner)
        few = few_of(self.places_max)
        if places >= self.places_max:
            more = ""
        elif request is not None and len(request.line) >= few:
            more = f", {len(request.line)} of them of this request: the last places are for others"
        elif owner is not None and owner.name and owner.places >= few:
            more = f", {owner.places} of them of this API key: the last places are for others"
        else:
            return None
        message = f"{places} generations are waiting already{more}; try again later, or ask for fewer at once"
        return Refusal(code="queue_full", message=message, retry_after_s=1.0)

    def put(self, waiting: Waiting) -> None:
        assert waiting.key not in self._waiting, f"{waiting.key} is waiting already"
        request = self._request(waiting)
        self._waiting[waiting.key] = waiting
        request.owner.places += 1
        request.line.put(waiting.key, (int(waiting.open.attempt == 0), waiting.arrival))
        self._rank(request)

    def discard(self, key: RowKey) -> None:
        """It waits no more, if it did."""
        waiting = self._waiting.pop(key, None)
        if waiting is None:
            return
        request = self._requests[waiting.request]
        request.owner.places -= 1
        request.line.drop(key)
        self._rank(request)

    # ------------------------------------------------------------ rows

    def next(self, *, memory_is_scarce: bool) -> Waiting | None:
        """Whose turn it is; None when nobody waits who may have a row now."""
        running = len(self._running)
        if not self._waiting or running >= self.rows_max:
            return None
        scarce = memory_is_scarce or running >= self.rows_max - places_kept(self.rows_max)
        if scarce not in self._next:
            self._next[scarce] = self._find(scarce)
        return self._next[scarce]

    def begin(self, waiting: Waiting) -> None:
        """It has a row now."""
        request = self._requests[waiting.request]
        assert waiting.key not in self._running, f"{waiting.key} has a row already"
        self._running[waiting.key] = request
        request.rows += 1
        request.owner.rows += 1
        self.discard(waiting.key)

    def end(self, key: RowKey) -> None:
        """It has no row any more, if it had one."""
        request = self._running.pop(key, None)
        if request is None:
            return
        request.rows -= 1
        request.owner.rows -= 1
        self._rank(request)

    def resize(self, rows_max: int) -> None:
        """There are so many rows from now on; those that are held stay."""
        self.rows_max = rows_max
        self._next.clear()

    # ------------------------------------------------------------ inside

    def _find(self, scarce: bool) -> Waiting | None:
        def fits(request: _Request) -> bool:
            return not scarce or (request.rows < few_of(self.rows_max) and self._below_its_part(request.owner))

        def has_one_that_fits(owner: _Owner) -> bool:
            first = owner.requests.first()  # it holds the fewest rows
            return first is not None and fits(first)

        request = self._replays.first(fits)
        if request is None and (owner := self._fair.first(has_one_that_fits)) is not None:
            request = owner.requests.first()
        key = None if request is None else request.line.first()
        return None if key is None else self._waiting[key]

    def _below_its_part(self, owner: _Owner) -> bool:
        return len(self._owners) == 1 or owner.rows < max(1, self.rows_max // len(self._owners))

    def _request(self, waiting: Waiting) -> _Request:
        request = self._requests.get(waiting.request)
        if request is None:
            name = waiting.open.owner
            owner = self._owners.setdefault(name, _Owner(name))
            request = self._requests[waiting.request] = _Request(waiting.request, owner)
        return request

    def _rank(self, request: _Request) -> None:
        """Puts the request, and its owner, where they belong now. Who has neither rows nor places is forgotten."""
        self._next.clear()
        owner, oldest = request.owner, request.line.first()
        self._replays.drop(request)
        owner.requests.drop(request)
        if oldest is not None:
            is_new, arrival = request.line.key_of(oldest)
            if is_new:
                owner.requests.put(request, (request.rows, arrival))
            else:
                self._replays.put(request, (arrival,))
        elif not request.rows:
            del self._requests[request.key]
        first = owner.requests.first()
        if first is not None:
            self._fair.put(owner, (owner.rows, *owner.requests.key_of(first)))
            return
        self._fair.drop(owner)
        if not owner.rows and not owner.places:
            del self._owners[owner.name]

    def check(self) -> None:
        """The counts are those of what is there. Raises AssertionError; for tests and the simulator."""
        requests = list(self._requests.values())
        assert len(self._running) <= self.rows_max, f"{len(self._running)} rows, where there are {self.rows_max}"
        assert not self._running.keys() & self._waiting.keys(), "somebody waits for a row, and has one"
        assert all(request.rows or len(request.line) for request in requests), "a request is remembered for nothing"
        assert sum(request.rows for request in requests) == len(self._running)
        assert sum(len(request.line) for request in requests) == len(self._waiting)
        for owner in self._owners.values():
            own = [request for request in requests if request.owner is owner]
            assert own, f"owner {owner.name!r} is remembered for nothing"
            assert owner.rows == sum(request.rows for request in own)
            assert owner.places == sum(len(request.line) for request in own)
        assert {request.owner.name for request in requests} == set(self._owners)
