"""A stage's life: an order is carried out once, in order, and only while it is still wanted."""

import pytest

from hydra.actors.core.facts import Joined, Left
from hydra.actors.core.machine import CancelTimer, Received, Send, SetTimer, TimerFired
from hydra.actors.core.names import PLANNER
from hydra.actors.core.ports import SliceFacts
from hydra.actors.stage.stage import (
    FENCE_LEASE_S,
    Activated,
    Publish,
    RunActivate,
    RunDrop,
    RunLoad,
    SliceIn,
    SliceMoved,
    SliceRefused,
    Stage,
    ThreadFenced,
    ThreadStuck,
    ThreadTrouble,
)
from hydra.actors.stage.stage_line import Fence
from hydra.actors.stage.step_limits import StepLimits
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Epoch
from hydra.protocol.messages.membership import Welcome
from hydra.protocol.messages.plans import (
    Activate,
    DropSlice,
    Fenced,
    LoadFailed,
    LoadProgress,
    LoadSlice,
    Ready,
    RouteBroken,
    SliceLoaded,
)
from hydra.protocol.refusal import Refusal
from hydra.simulation.pocket_model import POCKET_VOCAB, pocket_spec

E1, E2, E3 = Epoch(1, 1), Epoch(1, 2), Epoch(1, 3)
FACTS = SliceFacts(weight_bytes=10, read_bytes=8, kv_blocks_max=50, load_s=0.5)
NO = Refusal(code="bad_model", message="a lie")
NEXT = Endpoint("next")


def order(epoch=E1, route=1):
    return LoadSlice(
        route=route,
        epoch=epoch,
        spec=pocket_spec(2),
        dtype="float32",
        first_layer=0,
        end_layer=2,
        tensors=(),
        sources=(),
        block_size=16,
        kv_memory_bytes=100,
    )


def plan(epoch=E1, route=1, index=0, of=2):
    return Activate(route=route, epoch=epoch, kv_blocks=40, next_addr=NEXT, credits=4, stage_index=index, n_stages=of)


def told(stage, event):
    """What it does; the fence's own clock has its own tests."""
    return [e for e in stage.handle(event, 0.0) if not isinstance(e, SetTimer | CancelTimer)]


def hears(stage, message):
    return told(stage, Received(PLANNER, message))


def said(effects):
    return [e.message for e in effects if isinstance(e, Send) and e.to == PLANNER]


def loading(epoch=E1):
    stage = Stage()
    hears(stage, order(epoch))
    told(stage, ThreadFenced(1, epoch))
    return stage


def loaded(epoch=E1):
    stage = loading(epoch)
    told(stage, SliceIn(1, epoch, FACTS))
    return stage


def ready(epoch=E1):
    stage = loaded(epoch)
    hears(stage, plan(epoch))
    told(stage, Activated(1, epoch))
    return stage


def closed(epoch, route=1):
    return Publish(Fence(route=route, epoch=epoch, open=False))


def test_from_an_order_to_ready():
    stage = Stage()
    assert hears(stage, order()) == [closed(E1)], "first the fence; nothing is freed under a running step"
    fenced, load = told(stage, ThreadFenced(1, E1))
    assert fenced == Send(PLANNER, Fenced(route=1, epoch=E1)) and load == RunLoad(order())
    assert said(told(stage, SliceMoved(1, E1, 5, 10))) == [
        LoadProgress(route=1, epoch=E1, bytes_done=5, bytes_total=10)
    ]
    assert said(told(stage, SliceIn(1, E1, FACTS))) == [
        SliceLoaded(route=1, epoch=E1, kv_blocks_max=50, weight_bytes=10, read_bytes=8, load_s=0.5)
    ]
    assert hears(stage, plan()) == [RunActivate(1, E1, 40)]
    publish, reply = told(stage, Activated(1, E1))
    limits = StepLimits(vocab=POCKET_VOCAB + 2, kv_blocks=40, block_size=16, hidden=2, dtype="float32", first=True)
    fence = Fence(route=1, epoch=E1, open=True, last=False, next_addr=NEXT, credits=4, limits=limits)
    assert publish == Publish(fence)
    assert reply == Send(PLANNER, Ready(route=1, epoch=E1)), "the fence opens before anybody may send"


def test_the_last_stage_knows_that_it_is_the_last():
    stage = loaded()
    hears(stage, plan(index=1))
    assert told(stage, Activated(1, E1))[0].fence.last


@pytest.mark.parametrize("epoch", [E1, E2])
def test_an_order_of_the_same_or_an_older_epoch_is_nothing(epoch):
    stage = ready(E2)
    assert hears(stage, order(epoch)) == [] and stage.wants(1, E2)


@pytest.mark.parametrize("state", [loading, loaded, ready])
def test_a_later_order_fences_at_once_and_lets_the_former_go(state):
    stage = state(E1)
    assert hears(stage, order(E2)) == [closed(E2)]
    assert not stage.wants(1, E1)
    for late in (
        ThreadFenced(1, E1),
        SliceMoved(1, E1, 1, 2),
        SliceIn(1, E1, FACTS),
        SliceRefused(1, E1, NO),
        Activated(1, E1),
    ):
        assert told(stage, late) == [], f"{late} belongs to an order that is no longer wanted"
    assert hears(stage, plan(E1)) == []
    assert RunLoad(order(E2)) in told(stage, ThreadFenced(1, E2))


def test_a_thread_that_acks_again_loads_once():
    stage = loading()
    assert told(stage, ThreadFenced(1, E1)) == []


def test_activation_waits_for_the_weights_and_happens_once():
    stage = loading()
    assert hears(stage, plan()) == []
    told(stage, SliceIn(1, E1, FACTS))
    assert hears(stage, plan()) == [RunActivate(1, E1, 40)]
    assert hears(stage, plan()) == []


def test_a_load_that_fails_is_told_and_never_activated():
    stage = loading()
    assert said(told(stage, SliceRefused(1, E1, NO))) == [LoadFailed(route=1, epoch=E1, refusal=NO)]
    assert hears(stage, plan()) == [] and told(stage, SliceIn(1, E1, FACTS)) == []
    assert hears(stage, order(E2)) == [closed(E2)], "the next order finds it willing"


def test_an_activation_that_fails_is_told_and_the_next_order_is_carried_out():
    stage = loading()
    told(stage, SliceIn(1, E1, FACTS))
    hears(stage, plan())
    assert said(told(stage, SliceRefused(1, E1, NO))) == [LoadFailed(route=1, epoch=E1, refusal=NO)]
    assert told(stage, Activated(1, E1)) == [] and hears(stage, order(E2)) == [closed(E2)]


def test_the_threads_trouble_reaches_the_planner():
    assert said(told(ready(), ThreadTrouble(1, E1, "gap"))) == [RouteBroken(route=1, epoch=E1, why="gap", side="in")]


def test_a_dropped_slice_is_fenced_before_it_is_freed():
    stage = ready()
    assert hears(stage, DropSlice(route=1, epoch=E2)) == [closed(E2)]
    fenced = Send(PLANNER, Fenced(route=1, epoch=E2))
    assert told(stage, ThreadFenced(1, E2)) == [fenced, RunDrop(1, weights=True)]
    assert told(stage, ThreadFenced(1, E2)) == []
    assert hears(stage, DropSlice(route=1, epoch=E2)) == [], "the same one twice: the thread would not speak again"


def test_a_drop_of_an_older_epoch_is_nothing_and_one_of_what_is_not_here_is_answered_at_once():
    stage = ready(E2)
    assert hears(stage, DropSlice(route=1, epoch=E1)) == []
    assert hears(stage, DropSlice(route=9, epoch=E3)) == [Send(PLANNER, Fenced(route=9, epoch=E3))]


def test_a_drop_that_a_leaving_overtakes_frees_all_the_same_and_is_not_answered():
    stage = ready()
    hears(stage, DropSlice(route=1, epoch=E2))
    assert told(stage, Left(why="expelled")) == []
    assert told(stage, ThreadFenced(1, E2)) == [RunDrop(1, weights=True)], "who is out says nothing but Hello"


def test_a_slice_that_was_dropped_can_be_ordered_again():
    stage = ready(E1)
    hears(stage, DropSlice(route=1, epoch=E2))
    assert hears(stage, order(E2)) == []
    assert hears(stage, order(E3)) == [closed(E3)]
    assert RunDrop(1, weights=True) not in told(stage, ThreadFenced(1, E3))


def test_out_of_the_cluster_it_fences_itself_and_keeps_only_weights():
    stage = ready()
    assert told(stage, Left(why="expelled")) == [closed(E1)]
    assert told(stage, ThreadFenced(1, E1)) == [RunDrop(1, weights=False)], "KV goes once no step runs any more"
    welcome = Welcome(generation=2, term=1, heartbeat_s=0.5, results_addr=Endpoint("r"))
    assert told(stage, Joined(welcome=welcome)) == []
    assert hears(stage, plan()) == [], "what it had was of another life"
    assert hears(stage, order(E2)) == [closed(E2)]


def test_out_while_loading_the_result_is_let_go():
    stage = loading()
    assert told(stage, Left(why="new term")) == [RunDrop(1, weights=False)], "no step runs: freed at once"
    assert told(stage, SliceIn(1, E1, FACTS)) == [] and not stage.wants(1, E1)


@pytest.mark.parametrize("state", [loading, loaded])
def test_out_behind_a_closed_fence_it_waits_for_no_word_of_the_thread(state):
    """The thread says a fence once: a clock that waited for it again would end this process 30 s later."""
    assert clocks(state().handle(Left(why="expelled"), 5.0)) == []


def test_out_while_the_thread_may_still_step_nothing_is_freed_under_it():
    stage = ready()
    hears(stage, order(E2))
    assert told(stage, Left(why="expelled")) == [closed(E2)]
    assert told(stage, ThreadFenced(1, E2)) == [RunDrop(1, weights=False)]


def test_two_routes_live_side_by_side():
    stage = ready()
    assert hears(stage, order(E2, route=2)) == [closed(E2, route=2)]
    told(stage, ThreadFenced(2, E2))
    assert stage.wants(1, E1) and stage.wants(2, E2)
    assert hears(stage, DropSlice(route=1, epoch=E3)) == [closed(E3)] and stage.wants(2, E2)


def clocks(effects):
    return [(type(e), e.key) for e in effects if isinstance(e, SetTimer | CancelTimer)]


def test_a_thread_that_does_not_let_go_is_stuck():
    stage = ready()
    (_, clock) = stage.handle(Received(PLANNER, order(E2)), 10.0)
    assert clock == SetTimer(("fence", 1), 10.0 + FENCE_LEASE_S)
    assert clocks(stage.handle(Received(PLANNER, order(E3)), 20.0)) == [], "a later epoch gives it no more time"
    (stuck,) = stage.handle(TimerFired(("fence", 1)), 40.0)
    assert isinstance(stuck, ThreadStuck) and stuck.route == 1


def test_a_thread_that_lets_go_is_not():
    stage = ready()
    stage.handle(Received(PLANNER, order(E2)), 10.0)
    stage.handle(Received(PLANNER, order(E3)), 20.0)
    assert stage.handle(ThreadFenced(1, E2), 21.0) == [SetTimer(("fence", 1), 21.0 + FENCE_LEASE_S)], "it lives"
    assert clocks(stage.handle(ThreadFenced(1, E3), 22.0)) == [(CancelTimer, ("fence", 1))]


@pytest.mark.parametrize("event", [Left(why="expelled"), Received(PLANNER, DropSlice(route=1, epoch=E2))])
def test_whoever_leaves_or_drops_waits_no_longer_than_that(event):
    assert clocks(ready().handle(event, 5.0)) == [(SetTimer, ("fence", 1))]
