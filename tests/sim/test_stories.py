"""Faults one by one, told as stories. Each ends with every answer equal to the oracle's and nothing held."""

from collections.abc import Awaitable, Callable

import attrs
import pytest
import trio

from hydra.simulation.chat import Chat
from hydra.simulation.determinism import run_sim
from hydra.simulation.pocket_model import POISON
from hydra.simulation.shape import Shape
from hydra.simulation.world import World, open_world
from tests.sample import plays_all

THREE = Shape(workers=3, layers=9)
PROMPTS = [[(7 * n + i) % 250 for i in range(5 + 9 * n)] for n in range(8)]


@attrs.define
class Told:
    """A story that came out well."""

    world: World
    workers: list[str]  # alive in the end
    stale_dropped: int
    replays: int


def tell(story: Callable[[World], Awaitable[None]], shape: Shape = THREE, seed: int = 1) -> Told:
    """Plays it, then checks the answers of all who stayed, and that nothing is held."""
    worlds: list[World] = []
    told: list[Told] = []

    async def play() -> None:
        async with open_world(shape, seed) as world:
            worlds.append(world)
            await world.until_ready()
            await story(world)
            for chat in world.chats:
                with trio.fail_after(200):
                    await chat.finished()
                if POISON not in chat.prompt:
                    world.check(chat)
            await world.settle()
            replays = sum(node.family.sessions.replays for name, node in world.nodes.items() if name[0] == "f")
            told.append(Told(world, world.workers(), world.stale_dropped, replays))

    try:
        run_sim(seed, play)
    except BaseException as why:
        why.add_note("\n".join(worlds[0].story if worlds else []))
        raise
    return told[0]


async def eight_in_the_middle(world: World) -> list[Chat]:
    chats = [world.chat(prompt, max_tokens=30) for prompt in PROMPTS]
    for chat in chats:
        await chat.until(3)
    return chats


@pytest.mark.parametrize("layer", [0, 4, 8], ids=["first", "middle", "last"])
@pytest.mark.parametrize("back_after_s", [1.0, None], ids=["it returns", "it never returns"])
def test_a_worker_dies_in_the_middle_of_eight_answers(layer, back_after_s):
    async def story(world):
        await eight_in_the_middle(world)
        world.kill(world.holder_of(layer), back_after_s)

    told = tell(story)
    assert told.replays >= 8
    if back_after_s is None:
        assert len(told.workers) == 2, "the survivors took over its layers"


def test_two_workers_die_at_once():
    async def story(world):
        await eight_in_the_middle(world)
        world.kill("w1", back_after_s=2.0)
        world.kill("w2")

    assert tell(story).replays >= 8


def test_all_workers_die_and_one_returns():
    async def story(world):
        await eight_in_the_middle(world)
        for name in ("w1", "w2", "w3"):
            world.kill(name, back_after_s=4.0 if name == "w2" else None)

    assert tell(story).workers == ["w2"]


def test_a_worker_dies_while_the_answers_are_being_replayed():
    async def story(world):
        await eight_in_the_middle(world)
        world.kill("w1")
        await world.eventually(lambda: world.phase() == "ready", 10.0, "the survivors are up")
        await trio.sleep(0.01)  # in the middle of the replay's prefill
        world.kill(world.holder_of(8), back_after_s=1.0)

    tell(story)


def test_the_coordinator_dies():
    async def story(world):
        await eight_in_the_middle(world)
        world.kill("coordinator", back_after_s=0.5)

    told = tell(story)
    assert told.world.saved.term == 2 and told.replays >= 8


def test_the_coordinator_and_a_worker_die_together():
    async def story(world):
        await eight_in_the_middle(world)
        world.kill("coordinator", back_after_s=0.5)
        world.kill("w2")

    tell(story)


@pytest.mark.parametrize("layer", [0, 8])
def test_a_stopped_worker_is_fenced_and_may_come_back(layer):
    async def story(world):
        await eight_in_the_middle(world)
        world.pause(world.holder_of(layer), 10.0)
        await trio.sleep(15.0)

    told = [tell(story, seed=seed) for seed in range(1, 6)]
    assert sum(one.stale_dropped for one in told) > 0, "its old epoch was refused"
    assert all(len(one.workers) == 3 for one in told)


def test_a_stopped_coordinator_comes_back_without_anybody_noticing_more_than_a_pause():
    async def story(world):
        await eight_in_the_middle(world)
        world.pause("coordinator", 4.0)

    tell(story)


def test_a_hung_computation_is_found_although_its_process_beats():
    async def story(world):
        await eight_in_the_middle(world)
        world.hang(world.holder_of(4))

    world = tell(story).world
    assert any("is overdue" in line for line in world.story), "its parent was told to kill it"


@pytest.mark.parametrize("for_s", [0.3, 3.0, 30.0])
@pytest.mark.parametrize("other", ["coordinator", "w1"])
def test_a_partition_heals(other, for_s):
    async def story(world):
        await eight_in_the_middle(world)
        world.cut("w2", other, for_s)
        await trio.sleep(for_s + 1.0)

    tell(story)


@pytest.mark.parametrize("ends", [("w2", "coordinator"), ("coordinator", "w2"), ("w1", "w2"), ("f1", "coordinator")])
def test_a_partition_in_one_direction(ends):
    async def story(world):
        await eight_in_the_middle(world)
        world.deafen(*ends, 8.0)
        await trio.sleep(9.0)

    tell(story)


def test_a_frontend_dies_and_only_its_readers_lose():
    async def story(world):
        for number, prompt in enumerate(PROMPTS):
            world.chat(prompt, max_tokens=30, frontend=f"f{1 + number % 2}")
        for chat in world.chats:
            await chat.until(3)
        world.kill("f1", back_after_s=1.0)

    world = tell(story, Shape(workers=2, frontends=2)).world
    assert [chat.left for chat in world.chats] == [True, False] * 4


def test_a_reader_that_leaves_frees_its_place_at_once():
    async def story(world):
        chat = world.chat(PROMPTS[3], max_tokens=90)
        await chat.until(5)
        steps = world.nodes["w1"].compute.tokens_computed
        chat.leave()
        await chat.finished()
        await trio.sleep(0.2)
        assert world.nodes["w1"].compute.tokens_computed <= steps + 3, "at most what was in flight"
        world.check_quiet()

    tell(story, Shape(workers=2))


def test_poison_ends_after_its_third_death_and_the_others_finish():
    async def story(world):
        await eight_in_the_middle(world)
        world.chat([5, POISON], max_tokens=20)

    world = tell(story).world
    poisoned = world.chats[-1]
    assert poisoned.refusal.code == "replay_limit" and not poisoned.tokens
    assert world.deaths == 3, "it was alone from its third try on, and no fourth worker died of it"


def test_a_late_worker_is_a_spare_until_the_next_plan_and_no_stream_notices():
    async def story(world):
        await eight_in_the_middle(world)
        epoch = world.epoch()
        world.start("w4")
        await trio.sleep(2.0)
        assert world.epoch() == epoch, "a working route is left in peace"
        await world.rebalance()
        await world.eventually(lambda: world.phase() == "ready" and world.epoch() != epoch, 10.0, "a new plan is up")
        assert "w4" in [world.holder_of(layer) for layer in range(9)]

    tell(story)


def test_nothing_fits_and_the_reader_is_told_when_to_come_back():
    async def story(world):
        for name in ("w1", "w2", "w3"):
            world.kill(name)
        await world.eventually(lambda: world.phase() == "waiting", 10.0, "the loss is seen")
        chat = world.chat([1, 2, 3], max_tokens=5)
        await world.eventually(lambda: chat.turned_away > 0, 5.0, "it is turned away")
        assert chat.refusal.code == "no_workers" and chat.refusal.retry_after_s
        world.start("w1")

    tell(story)


def test_more_memory_than_one_worker_has_is_waited_for():
    """Nine layers of 100 MB over 450 MB each: two workers are too few, and a third one's return is enough."""

    async def story(world):
        await eight_in_the_middle(world)
        world.kill("w3", back_after_s=20.0)

    tell(story, Shape(workers=3, layers=9, memory_bytes=450_000_000))


def test_a_small_pool_preempts_and_nobody_notices():
    async def story(world):
        for prompt in PROMPTS:
            world.chat([number % 250 for number in [*prompt, len(prompt)]], max_tokens=40)

    assert tell(story, Shape(workers=2, kv_blocks=40)).replays > 0, "somebody had to make room"


def n_messages(seed: int) -> int:
    """How many messages arrive from the first request to the last word."""
    at: list[int] = []

    async def story(world):
        at.append(world.network.arrivals)
        await three_answers(world)
        at.append(world.network.arrivals)

    tell(story, Shape(workers=3, layers=3), seed)
    return at[1] - at[0]


async def three_answers(world: World) -> None:
    chats = [world.chat(prompt, max_tokens=8) for prompt in ([1, 2, 3], [9, 8], list(range(40)))]
    for chat in chats:
        await chat.finished()


def kill_at(number: int, victim: str) -> None:
    async def story(world):
        at = world.network.arrivals + number
        world.network.strikes[at] = lambda: world.kill(victim, back_after_s=0.7)
        await three_answers(world)

    tell(story, Shape(workers=3, layers=3), seed=3)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "victim", ["w2", "coordinator", *(pytest.param(w, marks=pytest.mark.long) for w in ("w1", "w3"))]
)
def test_a_death_after_every_single_message(victim):
    """Of each four messages one, unless all seeds are played."""
    total = n_messages(3)
    assert total > 50
    for number in range(1, total + 1, 1 if plays_all() else 4):
        kill_at(number, victim)
