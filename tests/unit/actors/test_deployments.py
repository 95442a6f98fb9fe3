"""Several deployments of one model: on nodes of their own, one after the other, and each by itself when one is lost."""

import pytest

from hydra.actors.core.facts import ModelGone, ModelKnown, ModelStalled, NodeLost, RouteDown, RouteServed, RouteUp
from hydra.actors.core.machine import TimerFired
from hydra.actors.planning.desired_model import DesiredModel, Recover, WasDescribed
from hydra.actors.planning.node_groups import group_of
from hydra.protocol.messages.plans import DropSlice
from tests.unit.actors.test_planner import MODEL, Hall, facts, joined, layers, sent


def hall_of(*nodes, replicas=2, gigabytes=8.0):
    hall = Hall()
    desired = DesiredModel("/models/m", "m", replicas=replicas)
    hall.tell(Recover(desired=(desired,), expected=len(nodes), nodes=(), patience_s=6.0))
    for node in nodes:
        hall.tell(joined(node, gigabytes=gigabytes))
    return hall


def lost(node, life=1):
    return NodeLost(node=node, generation=life, why="gone")


def described(hall):
    return hall.tell(WasDescribed("/models/m", MODEL))


def serve_all(hall, effects):
    """All the way from LoadSlice to RouteUp, for every deployment that was given an epoch."""
    return facts(hall.warms(hall.loads(effects)), RouteUp)


def placed(hall):
    """The nodes of each deployment that is placed, by route."""
    return {d.route_id: set(d.nodes()) for _, d in hall.planner.deployments if d.is_placed}


def test_two_deployments_share_no_node_and_leave_none_unused():
    hall = hall_of("a", "b", "c", "d")
    effects = described(hall)
    assert placed(hall) == {1: {"a", "c"}, 2: {"b", "d"}} and len(layers(effects)) == 4
    hall.planner.check()


@pytest.mark.parametrize(
    ("memory", "groups"),
    [
        ((8, 8, 8, 8), [{"a", "c"}, {"b", "d"}]),
        ((16, 8, 8), [{"a"}, {"b", "c"}]),
        ((8, 16, 4, 4), [{"b"}, {"a", "c", "d"}]),
    ],
)
def test_groups_have_about_equal_memory(memory, groups):
    nodes = {node: joined(node, gigabytes=size) for node, size in zip("abcd", memory, strict=False)}
    assert set(group_of(nodes, 2, ())) == groups[0] and set(group_of(nodes, 2, groups[1])) == groups[1]


def test_where_there_is_no_room_for_two_one_has_all_nodes():
    hall = hall_of("a", "b", gigabytes=4.5)
    described(hall)
    assert placed(hall) == {1: {"a", "b"}}
    assert not facts(hall.tell(TimerFired(("again", 2))), ModelStalled), "the other serves"
    hall.tell(joined("c", gigabytes=9.0))
    assert placed(hall) == {1: {"a", "b"}, 2: {"c"}}


def test_a_loss_takes_one_route_down_and_the_other_never_hears_of_it():
    hall = hall_of("a", "b", "c", "d")
    ups = serve_all(hall, described(hall))
    assert [up.route for up in ups] == [1, 2]
    effects = hall.tell(lost("a"))
    (down,) = facts(effects, RouteDown)
    assert down.route == 1 and down.death and placed(hall) == {1: {"c"}, 2: {"b", "d"}}
    assert set(layers(effects)) == {"c-1"} and not facts(effects, ModelStalled)[0].refusal


def test_a_deployment_without_a_place_holds_no_memory_and_its_nodes_are_there_for_the_other():
    hall = hall_of("a", "b", "c", "d", gigabytes=4.5)
    serve_all(hall, described(hall))
    effects = hall.tell(lost("a"))
    assert placed(hall) == {2: {"b", "d"}} and [to.peer for to, _ in sent(effects, DropSlice)] == ["c-1"]
    assert not facts(effects, ModelStalled), "new work goes to the other"
    hall.tell(lost("b"))
    assert placed(hall) == {2: {"c", "d"}} or placed(hall) == {1: {"c", "d"}}, "the nodes that are left serve again"


def test_when_nothing_is_placed_new_work_is_refused_and_the_deadline_ends_the_waiting():
    hall = hall_of("a", "b", gigabytes=8.0)
    serve_all(hall, described(hall))
    hall.tell(lost("a"))
    (stalled,) = facts(hall.tell(lost("b")), ModelStalled)
    assert stalled.refusal.code == "no_workers"
    (gone,) = facts(hall.tell(TimerFired(("recovery", 1))), ModelGone)
    assert (gone.refusal.code, gone.forget) == ("recovery_deadline", False)


def test_when_one_is_given_up_those_too_long_for_the_other_are_told_and_no_one_else():
    hall = hall_of("a", "b", gigabytes=8.0)
    serve_all(hall, described(hall))
    hall.tell(lost("a"))
    effects = hall.tell(TimerFired(("recovery", 1)))
    assert not facts(effects, ModelGone)
    (known,) = facts(effects, ModelKnown)
    assert known.max_model_len == hall.planner.cards()[0].max_model_len


def test_an_outage_ends_with_the_token_of_that_route():
    hall = hall_of("a", "b", gigabytes=8.0)
    one, other = serve_all(hall, described(hall))
    hall.tell(lost("a"))
    hall.tell(RouteServed(model_id="m", epoch=other.epoch))
    down = next(d for _, d in hall.planner.deployments if d.route_id == one.route)
    assert down.outage is not None
    (again,) = serve_all(hall, hall.tell(joined("a", life=2)))
    hall.tell(RouteServed(model_id="m", epoch=again.epoch))
    assert down.outage is None
