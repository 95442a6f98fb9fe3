"""What a cluster needs and does not get: hops that lead nowhere, loads that fail, a state that cannot be written.

Each by itself, as a story; the swarm mixes them with everything else. Those that last are beyond the planner as long as
it plans over what was promised: it makes the plan that broke again, and waits for ever for who says nothing.
"""

import itertools
from functools import partial

import attrs
import pytest
import trio

from hydra.actors.core.facts import StepVanished
from hydra.actors.core.machine import Effect, Event, Send
from hydra.protocol.ids import ActorName, Address, Epoch, PeerId, RouteId
from hydra.protocol.messages.plans import LoadSlice
from hydra.simulation.determinism import run_sim
from hydra.simulation.plan_watch import PlanWatch
from hydra.simulation.pocket_model import pocket_spec
from hydra.simulation.shape import Shape
from hydra.simulation.world import World, open_world
from tests.sample import n_seeds
from tests.sim.swarm import LASTING, MEANS, SURVIVED, means_plot, play_means
from tests.sim.test_stories import PROMPTS, THREE, eight_in_the_middle, tell

WITHIN_S = 40.0  # dialling, the step lease and a new plan; far below the recovery deadline
RECOVERY_S = 120.0


def survived(kind: str) -> pytest.MarkDecorator:
    """The test of a fault that is not among those of the swarm yet."""
    assert kind in LASTING
    return pytest.mark.xfail(kind not in SURVIVED, strict=True, reason=f"nothing is done about it yet: {kind}")


def in_a_row(world: World) -> list[str]:
    """The nodes of the one route, in order."""
    return [
        placement.share.node
        for _, _, route in world.coordinator.planner.models()
        if route
        for placement in route.stages
    ]


async def all_answered(world: World, within_s: float) -> None:
    with trio.fail_after(within_s):
        for chat in world.chats:
            await chat.finished()


HOPS = {"into the first": (0, 1), "in the middle": (1, 2), "out of the last": (3, 0)}
hops = pytest.mark.parametrize("hop", HOPS.values(), ids=list(HOPS))


def hop_of(world: World, hop: tuple[int, int]) -> tuple[str, str]:
    """Of the route as it is."""
    ends = ["coordinator", *in_a_row(world)]
    return ends[hop[0]], ends[hop[1]]


@hops
@pytest.mark.parametrize("for_s", [0.5, 4.0])
def test_a_hop_is_dead_for_a_while(hop, for_s):
    async def story(world):
        await eight_in_the_middle(world)
        before = world.epoch()
        world.sever(*hop_of(world, hop), for_s)
        await all_answered(world, WITHIN_S + for_s)
        assert world.epoch() != before, "steps vanished, and nobody noticed"

    assert tell(story).replays >= 8


@survived("hop_for_good")
@hops
def test_a_hop_that_is_dead_for_good_is_in_no_plan(hop):
    async def story(world):
        await eight_in_the_middle(world)
        dead = hop_of(world, hop)
        world.sever(*dead)
        await all_answered(world, WITHIN_S)
        assert dead not in itertools.pairwise(["coordinator", *in_a_row(world), "coordinator"])

    tell(story)


@survived("hop_for_good")
def test_a_worker_that_nobody_reaches_when_it_joins_is_in_no_plan():
    async def story(world):
        world.start("w4")
        for name in ("coordinator", "w1", "w2", "w3"):
            world.sever(name, "w4")
        await eight_in_the_middle(world)
        await world.rebalance()
        await all_answered(world, WITHIN_S)
        assert "w4" not in in_a_row(world)

    tell(story)


@survived("hop_for_good")
def test_where_no_way_is_left_the_recovery_deadline_ends_what_waits():
    async def play():
        async with open_world(Shape(workers=1, layers=4), 1) as world:
            await world.until_ready()
            chat = world.chat(PROMPTS[3], max_tokens=30)
            await chat.until(3)
            world.sever("w1", "coordinator")
            with trio.fail_after(RECOVERY_S + 30.0):
                await chat.finished()
            assert chat.refusal is not None and chat.refusal.code == "recovery_deadline"
            world.check(chat, spare=True)

    run_sim(1, play)


def test_loads_are_refused_for_a_while():
    async def story(world):
        await eight_in_the_middle(world)
        for name in ("w2", "w3"):
            world.fail_loads(name, "refused", 8.0)
        world.kill("w1")
        await trio.sleep(4.0)
        assert world.phase() == "waiting"
        await all_answered(world, WITHIN_S)

    assert tell(story).replays >= 8


def test_a_load_hangs_for_a_while():
    async def story(world):
        await eight_in_the_middle(world)
        world.fail_loads("w2", "hangs", 8.0)
        world.kill("w1")
        await trio.sleep(4.0)
        assert world.phase() == "loading"
        await all_answered(world, WITHIN_S)

    assert tell(story).replays >= 8


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=survived(f"load_{how}_for_good")) for how in ("refused", "hangs")]
)
def test_a_worker_that_never_loads_again_is_in_no_plan(how):
    async def story(world):
        await eight_in_the_middle(world)
        world.fail_loads("w2", how)
        world.kill("w1")
        await all_answered(world, RECOVERY_S)
        assert in_a_row(world) == ["w3"]

    tell(story)


@pytest.mark.parametrize("forget", [False, True], ids=["an old state", "no state"])
def test_a_coordinator_begins_with_a_state_that_was_not_kept(forget):
    async def story(world):
        chats = await eight_in_the_middle(world)
        world.fail_saves(forget=forget)
        await world.rebalance()
        await trio.sleep(1.0)
        former, told = world.coordinator.planner.term, [len(chat.tokens) for chat in chats]
        world.kill("coordinator", back_after_s=0.5)
        await all_answered(world, WITHIN_S)
        assert world.coordinator.planner.term > former, "an older term than workers have seen"
        assert any(chat.max_tokens > n for chat, n in zip(chats, told, strict=True)), "they were over already"

    tell(story, attrs.evolve(THREE, step_s=0.05))


def test_the_seeds_see_every_kind():
    plots = [means_plot(seed, LASTING) for seed in range(1, 61)]
    assert {*MEANS, *LASTING} <= {trouble.kind for plot in plots for trouble in plot.troubles}


@attrs.frozen
class _OneMind:
    """A planner that has one plan, whatever it hears."""

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        order = LoadSlice(
            route=RouteId(1),
            epoch=Epoch(1, int(now_s)),
            spec=pocket_spec(4),
            dtype="float32",
            first_layer=0,
            end_layer=4,
            tensors=(),
            sources=(),
            files=(),
            block_size=4,
            kv_memory_bytes=0,
        )
        return [Send(Address(PeerId("w1"), ActorName("stage")), order)]


def test_a_plan_that_broke_and_comes_again_untried_is_seen():
    watch = PlanWatch(_OneMind())
    more = {field.name: 0 for field in attrs.fields(StepVanished)}
    broken = partial(attrs.evolve, StepVanished(**{**more, "route": RouteId(1), "why": "nothing came back"}))
    watch.handle("a rebalance", 1.0)
    watch.handle("another", 2.0)
    assert not watch.repeated, "nothing broke"
    watch.handle(broken(epoch=Epoch(1, 1)), 3.0)
    assert not watch.repeated, "an epoch that is over already"
    watch.handle(broken(epoch=Epoch(1, 3)), 4.0)
    assert len(watch.repeated) == 1 and "nothing came back" in watch.repeated[0]


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=survived(kind)) for kind in LASTING])
def test_seeds_with_faults_that_last(kind):
    for seed in range(1, 1 + min(75, n_seeds())):
        play_means(seed, (kind,))
