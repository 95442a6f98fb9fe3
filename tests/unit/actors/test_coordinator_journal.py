"""What is read from a coordinator's turns: in the order of causes, and nothing that nothing came of."""

import attrs

from hydra.actors.core.facts import NodeLost, RouteDown, RouteUp
from hydra.actors.core.machine import Received, Send, Tell, TimerFired
from hydra.actors.families.coordinator_journal import CoordinatorJournal
from hydra.actors.membership.registry import NotLetIn, Opened
from hydra.actors.planning.desired_model import NodeNoted
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Address, Epoch
from hydra.protocol.messages.generations import Reopen
from hydra.protocol.messages.membership import Expelled, Goodbye, Heartbeat, Hello, Welcome
from hydra.protocol.messages.plans import Activate, LoadSlice, SliceLoaded
from hydra.protocol.refusal import Refusal
from hydra.simulation.pocket_model import pocket_spec

WELCOME = Welcome(generation=1, term=1, heartbeat_s=0.5, results_addr=Endpoint("mem://r"))


@attrs.define
class Lease:
    peer: str
    hello: Hello
    last_seen_s: float = 0.0


class Registry:
    """As much of one as is read."""

    term = 4

    def __init__(self):
        self.leases = []

    def members(self):
        return tuple(self.leases)


class Room:
    def __init__(self):
        self.registry = Registry()
        self.refused = 0
        self.journal = CoordinatorJournal(self.registry, lambda route: "m", lambda: self.refused)

    def turn(self, actor, event, *effects, now_s=0.0):
        return list(self.journal(actor, event, effects, now_s))

    def joins(self, node, role="worker"):
        hello = Hello(node_id=node, role=role, version=1, auth="", host="h", pid=1, term_seen=0)
        self.registry.leases = [lease for lease in self.registry.leases if lease.hello.node_id != node]
        self.registry.leases.append(Lease(f"{node}-1", hello))
        return self.turn("registry", Received(Address(f"{node}-1", "member"), hello), to(f"{node}-1", WELCOME))

    def plans(self, *nodes, number=2, because="whatever", now_s=0.0, down=()):
        epoch, spec = Epoch(4, number), pocket_spec(len(nodes))
        orders = [
            to(f"{node}-1", LoadSlice(
                route=1, epoch=epoch, spec=spec, dtype="float32", first_layer=at, end_layer=at + 1, tensors=(),
                sources=(), block_size=4, kv_memory_bytes=1,
            ))
            for at, node in enumerate(nodes)
        ]  # fmt: skip
        return self.turn("planner", because, *down, *orders, now_s=now_s)


def to(peer, message):
    return Send(Address(peer, "somebody" if not isinstance(message, Expelled) else "member"), message)


def kinds(entries):
    return [entry.kind for entry in entries]


def up(*nodes, number=2):
    return RouteUp(
        model_id="m", route=1, epoch=Epoch(4, number), nodes=nodes, first_addr=Endpoint("a"), kv_blocks=1, block_size=4,
        max_model_len=9, credits=1, vocab=9,
    )  # fmt: skip


def test_a_beginning_and_those_who_come_and_go():
    room = Room()
    (began,) = room.turn("registry", Opened())
    assert (began.kind, began.count) == ("coordinator_began", 4)
    (joined,) = room.joins("w1")
    assert (joined.kind, joined.node, joined.role) == ("joined", "w1", "worker")
    room.joins("f", "frontend")
    goodbye = Received(Address("f-1", "member"), Goodbye(generation=1, why="stopped"))
    (left,) = room.turn("registry", goodbye, to("f-1", Expelled(generation=1, why="stopped")))
    assert (left.kind, left.node, left.role, left.reason) == ("left", "f", "frontend", "stopped")
    (lost,) = room.turn("registry", TimerFired("sweep"), to("w1-1", Expelled(generation=1, why="silent")))
    assert (lost.kind, lost.node, lost.reason) == ("lost", "w1", "silent")
    assert room.turn("registry", TimerFired("sweep"), to("w1-1", Expelled(generation=1, why="silent"))) == []


def test_greetings_that_crossed_are_told_only_where_a_plan_fell_by_them():
    room = Room()
    room.joins("w1")
    assert [room.joins("w1") for _ in range(9)] == [[]] * 9
    room.plans("w1")
    assert kinds(room.joins("w1")) == ["lost", "joined"]


def test_a_plan_made_in_the_turn_of_a_loss_comes_behind_what_the_loss_cost():
    room = Room()
    room.joins("w1"), room.joins("w2")
    room.plans("w1", "w2")
    room.turn("broker", up("w1", "w2"), now_s=1.0)
    down = RouteDown(model_id="m", route=1, death=True)
    assert (
        room.plans(
            "w2", number=3, because=NodeLost(node="w1", generation=1, why="x"), now_s=2.0, down=[Tell("broker", down)]
        )
        == []
    )
    reopen = to("f-1", Reopen(session=1, attempt=0, why="epoch"))
    fell, planned, loading = room.turn("broker", down, reopen, reopen, now_s=2.0)
    assert (fell.kind, fell.count, fell.reason, fell.epoch) == ("route_down", 2, "lost w1", Epoch(4, 2))
    assert (planned.kind, planned.reason, planned.nodes, planned.epoch) == ("planned", "lost w1", ("w2",), Epoch(4, 3))
    assert (loading.kind, loading.node, loading.first_layer, loading.end_layer) == ("slice_loading", "w2", 0, 1)
    loaded = SliceLoaded(route=1, epoch=Epoch(4, 3), kv_blocks_max=1, weight_bytes=1, read_bytes=1, load_s=0.1)
    activate = Activate(
        route=1, epoch=Epoch(4, 3), kv_blocks=1, next_addr=Endpoint("tcp://h:1"), credits=1, stage_index=0, n_stages=1
    )
    held, made = room.turn("planner", Received(Address("w2-1", "stage"), loaded), to("w2-1", activate), now_s=2.75)
    assert (held.kind, held.took_s, made.kind) == ("slice_loaded", 0.75, "activating")
    (risen,) = room.turn("broker", up("w2", number=3), now_s=3.0)
    assert (risen.kind, risen.took_s, risen.model_id) == ("route_up", 1.0, "m")


def test_what_is_refused_is_counted_from_heartbeats_and_what_is_repeated_is_told_once():
    room = Room()
    room.joins("w1")

    def beat(dropped):
        message = Heartbeat(generation=1, memory_free_bytes=0, stale_dropped=dropped)
        return [entry.count for entry in room.turn("registry", Received(Address("w1-1", "member"), message))]

    assert [beat(n) for n in (0, 3, 3, 5)] == [[], [3], [], [2]]
    room.refused = 2
    (results,) = room.turn("registry", TimerFired("sweep"))
    assert (results.kind, results.node, results.count) == ("stale_dropped", "coordinator", 2)
    refusal = Refusal(code="unauthorized", message="no token")
    assert kinds(room.turn("registry", Opened(), NotLetIn("x", "h", refusal))[1:]) == ["turned_away"]
    assert kinds(room.turn("registry", Opened(), NotLetIn("x", "h", refusal))[1:]) == []
    crowd = [room.turn("registry", Opened(), NotLetIn(f"y{n}", "h", refusal), now_s=n / 10)[1:] for n in range(30)]
    assert sum(map(len, crowd)) == 2, "of a crowd one a second"
    noted = room.turn("planner", TimerFired("redial"), NodeNoted("w1", "no answer"), NodeNoted("w1", ""))
    assert kinds(noted) == ["unusable", "usable"] and noted[0].reason == "no answer"
