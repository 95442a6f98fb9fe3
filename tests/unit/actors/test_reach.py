"""Plans over what was tried: who is dialled before a plan, who is left out of it and for how long."""

import attrs
import pytest

from hydra.actors.core.facts import ModelGone, ModelStalled, NodeLost, RouteDown, RouteServed
from hydra.actors.core.machine import CancelTimer, Received, SetTimer, TimerFired
from hydra.actors.planning.candidates import PERMUTED_NODES_MAX, Candidate, most_blocked, possible_orders
from hydra.actors.planning.deployment import ACTIVATE_SILENT_S, LOAD_SILENT_S
from hydra.actors.planning.deployments import RETRY_AFTER_S, TRY_AGAIN_S
from hydra.actors.planning.desired_model import DesiredModel, NodeNoted, Recover, WasDescribed
from hydra.actors.planning.outage import MOVING_S
from hydra.actors.planning.reach import FORGIVEN_S, QUARANTINE_S, REDIAL, DialOut, Reach
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import COORDINATOR, Address
from hydra.protocol.messages.models import LoadModel, Rebalance
from hydra.protocol.messages.plans import (
    Dial,
    Dialled,
    Fenced,
    LoadFailed,
    LoadProgress,
    ReachReport,
    Ready,
    RouteBroken,
)
from hydra.protocol.refusal import Refusal
from tests.unit.actors.test_planner import (
    MODEL,
    Hall,
    facts,
    gap_at,
    joined,
    layers,
    orders,
    sent,
)

GONE = Refusal(code="source_unreachable", message="the directory is gone")


def noted(effects):
    return {effect.node: effect.fault for effect in effects if isinstance(effect, NodeNoted)}


def keys(effects):
    return {effect.key for effect in effects if isinstance(effect, SetTimer)}


# ------------------------------------------------------------ dialled before it counts


def test_at_join_both_directions_are_dialled_and_until_then_a_node_does_not_count():
    hall = Hall(store_addr=Endpoint("tcp://store"))
    hall.begin(expected=1)
    hall.tell(WasDescribed("/models/m", MODEL))
    effects = hall.planner.handle(joined("a"), 0.0)
    (out,) = [effect for effect in effects if isinstance(effect, DialOut)]
    ((to, dial),) = sent(effects, Dial)
    assert out.addrs == (Endpoint("tcp://a-1"),)
    assert to == Address("a-1", "scout")
    assert (dial.step_addrs, dial.store_addrs) == ((Endpoint("tcp://results"),), (Endpoint("tcp://store"),))
    assert not orders(effects) and not hall.planner.is_tried("a")
    back = Dialled(ask=dial.ask, unanswered=())
    assert not orders(hall.planner.handle(Received(Address("a-1", "scout"), back), 0.0)), "one direction is not both"
    assert not orders(hall.planner.handle(Received(Address("f-1", "scout"), back), 0.0)), "nobody else can say it"


def test_at_every_plan_the_hops_that_have_not_answered_lately_are_dialled_and_what_works_goes_on_meanwhile():
    hall = Hall()
    hall.running("a", "b")
    hall.tell(joined("c"))
    hall.now_s = 100.0
    effects = hall.planner.handle(Received(Address("f-1", "asks"), Rebalance(ask=1)), hall.now_s)
    hall.silent.add("b-1")
    effects = [effect for made in hall._dialled(effects) for effect in made]
    assert hall.phase() == "ready" and not facts(effects, RouteDown) and not orders(effects), "b has not said it yet"
    hall.silent.clear()
    (ask,) = {key[0][1] for key in hall.planner.presence.reach._under_way.items()}
    assert ask == "b"


@pytest.mark.parametrize(
    ("filtered", "why"),
    [
        (("coordinator", "tcp://b-1"), "the coordinator cannot reach it at tcp://b-1"),
        (("b-1", "tcp://results"), "it cannot reach the results of the coordinator at tcp://results"),
        (("b-1", "tcp://store"), "it cannot reach the store of the coordinator at tcp://store"),
    ],
)
def test_a_node_that_is_not_reached_is_in_no_plan_says_so_and_counts_again_once_it_answers(filtered, why):
    hall = Hall(store_addr=Endpoint("tcp://store"))
    hall.running("a")
    hall.filtered.add(filtered)
    effects = hall.tell(joined("b"))
    assert why in noted(effects)["b"] and why in hall.planner.fault_of("b", 0.0)
    ((to, told),) = sent(effects, ReachReport)
    assert to == Address("b-1", "member") and why in told.fault, "it is told at its own end"
    assert REDIAL in keys(effects)
    assert set(layers(hall.hears(Rebalance(ask=1)))) <= {"a-1"}
    hall.filtered.clear()
    effects = hall.tell(TimerFired(REDIAL))
    assert noted(effects) == {"b": ""} and sent(effects, ReachReport)[0][1].fault == ""
    assert hall.planner.fault_of("b", 0.0) == ""


def test_a_node_that_does_not_say_whom_it_reaches_is_left_out_after_a_while():
    hall = Hall()
    hall.silent.add("a-1")
    hall.begin(expected=2)
    hall.tell(WasDescribed("/models/m", MODEL))
    hall.tell(joined("a"))
    hall.tell(joined("b"))
    hall.tell(TimerFired("patience"))
    ((ask, source),) = hall.planner.presence.reach._under_way
    assert source == "a"
    effects = hall.tell(TimerFired(("dial", ask, source)))
    assert "did not say" in noted(effects)["a"] and layers(effects) == {}
    assert hall.phase() == "loading", "over b alone"


def test_a_hop_between_two_nodes_that_does_not_work_is_gone_around():
    hall = Hall()
    hall.filtered.add(("a-1", "tcp://b-1"))
    hall.begin(expected=2)
    hall.tell(WasDescribed("/models/m", MODEL))
    hall.tell(joined("a"))
    assert layers(hall.tell(joined("b"))) == {"b-1": (0, 6), "a-1": (6, 12)}


def test_where_no_order_works_a_node_is_done_without():
    hall = Hall()
    hall.filtered |= {("a-1", "tcp://b-1"), ("b-1", "tcp://a-1")}
    hall.begin(expected=2)
    hall.tell(WasDescribed("/models/m", MODEL))
    hall.tell(joined("a"))
    assert layers(hall.tell(joined("b"))) == {"a-1": (0, 12)}


def test_a_new_life_is_dialled_anew():
    hall = Hall()
    hall.running("a", "b")
    hall.tell(NodeLost(node="b", generation=1, why="exit"))
    hall.filtered.add(("coordinator", "tcp://b-2"))
    assert "tcp://b-2" in noted(hall.tell(joined("b", life=2)))["b"]


def test_a_plan_that_waits_for_reachable_nodes_tells_which_and_where():
    hall = Hall()
    hall.filtered.add(("coordinator", "tcp://a-1"))
    hall.begin(expected=1)
    hall.tell(WasDescribed("/models/m", MODEL))
    hall.tell(joined("a"))
    effects = hall.tell(TimerFired("patience"))
    (stalled,) = [fact.refusal for fact in facts(effects, ModelStalled)]
    assert stalled.code == "no_workers" and "a: the coordinator cannot reach it at tcp://a-1" in stalled.message
    assert stalled.retry_after_s is not None and stalled.retry_after_s <= RETRY_AFTER_S


# ------------------------------------------------------------ breaks


def test_a_link_that_breaks_again_and_again_is_left_alone_longer_each_time():
    reach, now_s = Reach("tcp://results"), 0.0
    assert [reach.broke("a", "b", now_s) for _ in range(len(QUARANTINE_S) + 1)] == [*QUARANTINE_S, QUARANTINE_S[-1]]
    assert reach.blocked(now_s + QUARANTINE_S[-1] - 0.1) == {("a", "b")}, "in that direction"
    assert reach.blocked(now_s + QUARANTINE_S[-1]) == frozenset()


def test_a_break_and_its_quarantine_are_told():
    hall = Hall()
    up = hall.running("a", "b")
    effects = hall.hears(gap_at("b", up), Address("b-1", "stage"))
    assert noted(effects) == {"b": "a -> b: gap"}
    effects = hall.hears(gap_at("b", hall.serves(effects)), Address("b-1", "stage"))
    assert noted(effects) == {"b": f"a -> b: gap; in quarantine for {QUARANTINE_S[1]:.0f} s"}


def test_what_swallows_steps_before_one_address_is_looked_for_from_everywhere():
    """In quarantine is only a -> b; but a plan that begins with b would send to the same address."""
    hall = Hall()
    up = hall.running("a", "b")
    up = hall.serves(hall.hears(gap_at("b", up), Address("b-1", "stage")))
    hall.filtered |= {("coordinator", "tcp://b-1"), ("a-1", "tcp://b-1")}
    effects = hall.hears(gap_at("b", up), Address("b-1", "stage"))
    assert layers(effects) == {"a-1": (0, 12)}
    assert "the coordinator cannot reach it at tcp://b-1" in noted(effects)["b"]


def test_a_break_long_after_the_last_is_the_first_again():
    hall = Hall()
    up = hall.running("a", "b")
    for _ in range(4):
        effects = hall.hears(gap_at("b", up), Address("b-1", "stage"))
        assert "quarantine" not in noted(effects)["b"]
        up = hall.serves(effects)
        hall.now_s += FORGIVEN_S + 1.0


def test_the_side_of_a_break_says_which_link_it_was():
    def ends(broken, peer):
        hall = Hall()
        up = hall.running("a", "b")
        hall.tell(Received(Address(peer, "stage"), RouteBroken(route=up.route, epoch=up.epoch, why="?", side=broken)))
        return next(iter(hall.planner.presence.reach._breaks))

    assert ends("in", "a-1") == ("", "a") and ends("out", "a-1") == ("a", "b")
    assert ends("in", "b-1") == ("a", "b") and ends("out", "b-1") == ("b", "")
    assert ends("out", COORDINATOR) == ("", "a") and ends("in", COORDINATOR) == ("b", "")


def test_only_a_stage_of_the_epoch_can_end_it():
    hall = Hall()
    up = hall.running("a", "b")
    hall.tell(joined("c"))
    for peer in ("c-1", "f-1", "nobody"):
        assert hall.hears(gap_at("b", up), Address(peer, "stage")) == [] and hall.phase() == "ready"


def test_the_only_node_is_used_again_once_its_quarantine_is_over():
    hall = Hall()
    up = hall.running("a")
    up = hall.serves(hall.hears(gap_at("a", up), Address("a-1", "stage")))
    effects = hall.hears(gap_at("a", up), Address("a-1", "stage"))
    assert not orders(effects) and hall.phase() == "waiting", "never the same plan a third time"
    assert SetTimer(REDIAL, QUARANTINE_S[1]) in effects
    hall.now_s = QUARANTINE_S[1] + 0.01
    assert layers(hall.tell(TimerFired(REDIAL))) == {"a-1": (0, 12)}


def test_a_node_lost_twice_while_it_was_made_ready_is_better_done_without_where_that_is_possible():
    hall = Hall()
    up = hall.running("a")
    for life in (1, 2):
        hall.tell(joined("b", life=life))
        effects = hall.hears(Rebalance(ask=1))
        assert f"b-{life}" in orders(effects)
        hall.serves(hall.tell(NodeLost(node="b", generation=life, why="exit")))
    hall.tell(joined("b", life=3))
    assert set(orders(hall.hears(Rebalance(ask=1)))) == {"a-1"}
    assert up.nodes == ("a",)


# ------------------------------------------------------------ the recovery deadline


def test_the_recovery_deadline_is_set_once_in_an_outage_whatever_is_tried():
    hall = Hall()
    up = hall.running("a", "b")
    effects = hall.tell(NodeLost(node="b", generation=1, why="exit"))
    assert SetTimer(("recovery", 1), 60.0) in effects
    for number in range(1, 12):
        (order,) = orders(effects).values()
        failed = LoadFailed(route=order.route, epoch=order.epoch, refusal=GONE)
        hall.now_s = number * TRY_AGAIN_S
        effects = hall.hears(failed, Address("a-1", "stage"))
        assert ("recovery", 1) not in keys(effects) and CancelTimer(("recovery", 1)) not in effects
        effects = hall.tell(TimerFired(("again", 1)))
        assert ("recovery", 1) not in keys(effects) and CancelTimer(("recovery", 1)) not in effects
    (gone,) = facts(hall.tell(TimerFired(("recovery", 1))), ModelGone)
    assert gone.refusal.code == "recovery_deadline" and not gone.forget and up.nodes == ("a", "b")


def test_an_outage_ends_with_a_token_and_not_with_a_route():
    hall = Hall()
    hall.running("a", "b")
    up = hall.serves(hall.tell(NodeLost(node="b", generation=1, why="exit")))
    assert facts(hall.tell(TimerFired(("recovery", 1))), ModelGone), "all stages are ready, and nothing comes"
    assert hall.tell(RouteServed(model_id="m", epoch=up.epoch)) == [CancelTimer(("recovery", 1))]
    assert hall.tell(TimerFired(("recovery", 1))) == []


def test_a_load_that_gets_further_than_any_before_is_let_finish_and_one_that_repeats_itself_is_not():
    hall = Hall()
    hall.running("a", "b")
    effects = hall.tell(NodeLost(node="b", generation=1, why="exit"))
    (order,) = orders(effects).values()

    def moves(order, done):
        progress = LoadProgress(route=order.route, epoch=order.epoch, bytes_done=done, bytes_total=100)
        hall.hears(progress, Address("a-1", "stage"))
        return hall.tell(TimerFired(("recovery", 1)))

    hall.now_s = 60.0
    assert moves(order, 40) == [SetTimer(("recovery", 1), 60.0 + MOVING_S)]
    assert moves(order, 41) == [SetTimer(("recovery", 1), 60.0 + MOVING_S)]
    hall.hears(LoadFailed(route=order.route, epoch=order.epoch, refusal=GONE), Address("a-1", "stage"))
    (order,) = orders(hall.tell(TimerFired(("again", 1)))).values()
    assert facts(moves(order, 41), ModelGone), "as far as that another came"


# ------------------------------------------------------------ what works goes on


def test_a_rebalance_whose_bytes_cannot_be_had_leaves_the_working_route_alone():
    hall = Hall()
    hall.running("a", "b")
    hall.tell(joined("c"))
    hall.source_fault = "there is no /models/m on this machine"
    effects = hall.hears(Rebalance(ask=1))
    assert hall.phase() == "ready" and not facts(effects, RouteDown) and not orders(effects)
    hall.source_fault = ""
    assert orders(hall.hears(Rebalance(ask=2)))


def test_a_rebalance_that_moves_nothing_needs_no_files():
    hall = Hall()
    hall.running("a", "b")
    hall.source_fault = "gone"
    assert layers(hall.hears(Rebalance(ask=1))) == {"a-1": (0, 6), "b-1": (6, 12)}


def test_a_load_that_no_node_can_do_is_refused_also_when_nobody_waits_for_its_end():
    hall = Hall()
    hall.begin(expected=1)
    hall.tell(WasDescribed("/models/m", MODEL))
    hall.serves(hall.tell(joined("a")))
    hall.hears(LoadModel(ask=5, model_path="/models/other", model_id="other", dtype="bfloat16", wait=False))
    effects = hall.tell(WasDescribed("/models/other", MODEL))
    (gone,) = facts(effects, ModelGone)
    assert gone.refusal.code == "unsupported" and "a offers float32" in gone.refusal.message
    assert [model_id for model_id, _, _ in hall.planner.models()] == ["m"]


def test_at_start_one_from_elsewhere_does_not_stand_in_for_an_awaited_local_worker():
    hall = Hall()
    hall.tell(Recover((DesiredModel("/models/m"),), 2, (), 6.0, local=("w0", "w1")))
    hall.tell(WasDescribed("/models/m", MODEL))
    hall.tell(joined("w0"))
    assert not orders(hall.tell(joined("attic")))
    assert set(layers(hall.tell(joined("w1")))) == {"w0-1", "attic-1", "w1-1"}


# ------------------------------------------------------------ orders around what is blocked


def candidates(n):
    return [Candidate(node=f"n{number}", memory_bytes=1) for number in range(n)]


@pytest.mark.parametrize("n_seats", [3, PERMUTED_NODES_MAX + 3])
def test_an_order_that_nothing_blocks_is_found_if_there_is_one(n_seats):
    row = candidates(n_seats)
    assert possible_orders(row)[0] == tuple(row)
    backwards = frozenset((one.node, other.node) for one in row for other in row if one.node < other.node)
    assert possible_orders(row, backwards)[0] == tuple(reversed(row))
    alone = frozenset((row[1].node, other.node) for other in row) | {(other.node, row[1].node) for other in row}
    assert possible_orders(row, alone) == [] and most_blocked(row, alone) is row[1]


# ------------------------------------------------------------ nodes that are not made ready


def test_a_node_whose_loads_fail_again_is_done_without():
    hall = Hall()
    hall.running("a", "b")
    hall.tell(joined("c"))
    effects = hall.tell(NodeLost(node="a", generation=1, why="exit"))
    for _ in range(2):
        order = orders(effects)["b-1"]
        failed = LoadFailed(route=order.route, epoch=order.epoch, refusal=GONE)
        effects = hall.hears(failed, Address("b-1", "stage"))
        hall.now_s += TRY_AGAIN_S
        effects = effects if orders(effects) else hall.tell(TimerFired(("again", 1)))
    assert set(orders(effects)) == {"c-1"}


@pytest.mark.parametrize(("phase", "limit_s"), [("loading", LOAD_SILENT_S), ("activating", ACTIVATE_SILENT_S)])
def test_a_node_that_says_nothing_while_it_is_made_ready_is_done_without(phase, limit_s):
    hall = Hall()
    hall.running("a", "b")
    effects = hall.hears(Rebalance(ask=1))
    if phase == "activating":
        hall.loads(effects)
    assert hall.phase() == phase
    order = orders(effects)["a-1"]
    if phase == "loading":
        hall.now_s = limit_s - 1.0
        progress = LoadProgress(route=order.route, epoch=order.epoch, bytes_done=1, bytes_total=100)
        hall.hears(progress, Address("a-1", "stage"))
    else:
        hall.hears(Ready(route=order.route, epoch=order.epoch), Address("a-1", "stage"))
    hall.now_s = limit_s
    effects = hall.tell(TimerFired(("silence", 1)))
    assert "said nothing" in noted(effects)["b"] and set(orders(effects)) == {"a-1"}, "a has said something"


def test_a_stage_that_says_that_it_has_let_go_has_said_something():
    hall = Hall()
    hall.running("a", "b")
    order = orders(hall.hears(Rebalance(ask=1)))["a-1"]
    hall.now_s = LOAD_SILENT_S - 1.0
    assert hall.hears(Fenced(route=order.route, epoch=order.epoch), Address("a-1", "stage")) == []
    dropped = Fenced(route=order.route, epoch=attrs.evolve(order.epoch, number=99))
    assert hall.hears(dropped, Address("b-1", "stage")) == [], "of a slice that no plan has any more"
    hall.now_s = LOAD_SILENT_S
    assert set(orders(hall.tell(TimerFired(("silence", 1))))) == {"a-1"}


def test_a_worker_that_all_loads_fail_on_is_tried_again_but_not_at_once():
    hall = Hall()
    hall.running("a")
    hall.hears(Rebalance(ask=1))
    for number in range(1, 4):
        epoch = hall.epochs[-1]
        effects = hall.hears(LoadFailed(route=1, epoch=epoch, refusal=GONE), Address("a-1", "stage"))
        assert not orders(effects) and ("again", 1) in keys(effects), number
        hall.now_s += TRY_AGAIN_S
        assert orders(hall.tell(TimerFired(("again", 1))))


def test_what_is_made_ready_with_a_node_that_failed_at_it_is_done_without_it_as_soon_as_another_comes():
    hall = Hall()
    hall.running("a")
    hall.tell(joined("b"))
    effects = hall.tell(NodeLost(node="a", generation=1, why="exit"))
    assert set(orders(effects)) == {"b-1"}
    hall.now_s = LOAD_SILENT_S
    hall.tell(TimerFired(("silence", 1)))
    hall.now_s += TRY_AGAIN_S
    assert set(orders(hall.tell(TimerFired(("again", 1))))) == {"b-1"}, "rather with it than not at all"
    assert set(orders(hall.tell(joined("c")))) == {"c-1"}
