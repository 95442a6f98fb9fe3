"""One model on two routes behind one id: work is spread, and what one route loses the other goes on with at once."""

import pytest
import trio

from hydra.simulation.pocket_model import MODEL_ID
from hydra.simulation.world import Shape, World
from tests.sample import n_seeds
from tests.sim.swarm import play_replicas, replicas_plot
from tests.sim.test_stories import PROMPTS, tell

FOUR = Shape(workers=4, layers=8, replicas=2)
PARTS = 5


def routes(world: World) -> list[set[str]]:
    """The nodes of each deployment that is ready."""
    models = world.coordinator.planner.models()
    return [set(route.nodes()) for _, phase, route in models if phase == "ready" and route is not None]


def rows(world: World) -> dict[str, int]:
    """Generations by the first node of the route that computes them."""
    model = world.coordinator.broker._models[MODEL_ID]
    return {route.up.nodes[0]: len(route.scheduler.rows) for route in model.routes.values()}


async def both_at_work(world: World) -> None:
    await world.eventually(lambda: len(routes(world)) == 2, 30.0, "both deployments are ready")
    one, other = routes(world)
    assert not one & other and len(one | other) == 4, "on nodes of their own, and all nodes are used"
    chats = [world.chat(prompt[:20], max_tokens=100) for prompt in PROMPTS]
    for chat in chats:
        await chat.until(3)
    assert sorted(rows(world).values()) == [4, 4], "spread evenly"


@pytest.mark.parametrize("back_after_s", [1.0, None], ids=["it returns", "it never returns"])
def test_what_one_route_loses_goes_on_on_the_other_at_once(back_after_s):
    async def story(world):
        await both_at_work(world)
        lost, stays = routes(world)
        seen = [len(chat.tokens) for chat in world.chats]
        world.kill(min(lost), back_after_s)
        await world.eventually(lambda: routes(world) == [stays], 5.0, "the loss is seen")
        began_s = trio.current_time()
        while any(len(chat.tokens) <= n for chat, n in zip(world.chats, seen, strict=True) if not chat.over):
            await trio.sleep(0.005)
            assert trio.current_time() - began_s < 0.35, "no load (0.5 s) was waited for"
        assert routes(world) == [stays] and sum(rows(world).values()) == 8, "all are on the route that stayed"

    told = tell(story, FOUR)
    assert told.replays == 4, "only what the lost route computed is computed again"


def test_a_route_comes_back_when_its_node_does_and_is_given_work_again():
    async def story(world):
        await both_at_work(world)
        world.kill(min(routes(world)[0]), 1.0)
        for chat in world.chats:
            await chat.finished()
        await world.eventually(lambda: len(routes(world)) == 2, 60.0, "both are ready again")
        more = [world.chat(prompt, max_tokens=60) for prompt in PROMPTS]
        for chat in more:
            await chat.until(3)
        assert sorted(rows(world).values()) == [4, 4]

    tell(story, FOUR)


def test_without_memory_for_two_one_is_served_over_all_nodes():
    async def story(world):
        assert [len(nodes) for nodes in routes(world)] == [2]

    tell(story, Shape(workers=2, layers=8, replicas=2, memory_bytes=700_000_000))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
def test_seeds(part):
    for seed in range(1 + part, 1 + min(300, max(20, n_seeds() // 3)), PARTS):
        play_replicas(seed)


def test_the_seeds_go_where_it_hurts():
    kinds = {trouble.kind for seed in range(1, 61) for trouble in replicas_plot(seed).troubles}
    assert {"kill", "kill_for_good", "pause", "coordinator", "rebalance"} <= kinds
