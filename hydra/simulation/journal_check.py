"""What must be true of a coordinator's journal, whatever happened: ids, epochs and routes in their order. Pure.

It reads what people read, so that a story cannot tell of a route that was up without having been loaded.
"""

from collections import defaultdict
from collections.abc import Sequence

from hydra.protocol.ids import Epoch, RouteId
from hydra.protocol.messages.journal import RecordedEntry


def check_journal(entries: Sequence[RecordedEntry]) -> None:
    """Raises AssertionError. Of a ring that has forgotten its beginning only the order of ids is looked at."""
    ids = [recorded.id for recorded in entries]
    assert ids == sorted(set(ids)), "ids of the journal do not ascend"
    own = [recorded.entry for recorded in entries if recorded.process == "coordinator"]
    if not own or own[0].kind != "coordinator_began":
        return
    planned: list[Epoch] = []
    ready: defaultdict[Epoch, set[str]] = defaultdict(set)
    up: dict[RouteId, Epoch] = {}
    for entry in own:
        route, epoch = entry.route, entry.epoch
        if route is None or epoch is None:
            continue
        if entry.kind == "planned":
            assert not planned or epoch > planned[-1], f"epoch {epoch} was planned after {planned[-1]}"
            assert route not in up, f"route {route} was planned anew while it was up"
            planned.append(epoch)
        elif entry.kind == "slice_ready":
            ready[epoch].add(entry.node)
        elif entry.kind == "route_up":
            assert epoch in planned and route not in up, f"route {route} came up in epoch {epoch} out of turn"
            assert set(entry.nodes) <= ready[epoch], f"not all of {entry.nodes} were ready for epoch {epoch}"
            up[route] = epoch
        elif entry.kind == "route_down":
            assert up.pop(route, None) == epoch, f"route {route} went down in epoch {epoch}, in which it was not up"
