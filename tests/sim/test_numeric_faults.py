"""Faults of a row and of a step are none of a process. One row of eight becomes no numbers: it ends with the error that
says so, and the others with their whole answers. A step finds no memory: everybody is answered whole, in smaller steps.
"""

import pytest
import trio

from hydra.protocol.sampling import GREEDY, SamplingParams
from hydra.simulation.pocket_model import FRAIL, FRAIL_FOR
from hydra.simulation.shape import Shape
from tests.sample import n_seeds
from tests.sim.swarm import broken_row_plot, play_broken_row, play_short_memory
from tests.sim.test_stories import PROMPTS, eight_in_the_middle, tell

PARTS = 5


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("play", [play_broken_row, play_short_memory], ids=lambda play: play.__name__)
@pytest.mark.parametrize("part", range(PARTS))
def test_seeds(part, play):
    for seed in range(1 + part, 1 + n_seeds() // 10, PARTS):
        play(seed)


def test_the_seeds_go_where_it_hurts():
    plots = [broken_row_plot(seed) for seed in range(1, 51)]
    assert any(plot.troubles for plot in plots) and any(plot.shape.http for plot in plots)
    late = [
        len(talk.prompt) - talk.prompt.index(FRAIL) for plot in plots for talk in plot.talks if FRAIL in talk.prompt
    ]
    assert min(late) < FRAIL_FOR // 2 and max(late) > FRAIL_FOR, "some break at once, some in their answer"


@pytest.mark.parametrize("http", [False, True], ids=["direct", "http"])
@pytest.mark.parametrize("tail", [0, FRAIL_FOR], ids=["in the middle", "at once"])
def test_a_broken_row_ends_alone_and_no_process_dies(http, tail):
    async def story(world):
        await eight_in_the_middle(world)
        chat = world.chat([5, 6, FRAIL, *range(tail)], max_tokens=40)
        await chat.finished()
        assert chat.refusal.code == "not_finite" and "not finite" in chat.refusal.message
        assert len(chat.tokens) == FRAIL_FOR - tail and chat.turned_away == 0

    shape = Shape(workers=3, layers=9)
    if http:
        from hydra.simulation.http_reader import words_directory

        shape = Shape(workers=3, layers=9, http=True, model_path=words_directory())
    told = tell(story, shape)
    assert told.replays == 0 and told.world.deaths == 0
    assert all(node.life == 1 for node in told.world.nodes.values())


def test_who_shares_a_prompt_with_a_broken_row_is_computed_again_and_right():
    """The shared blocks were filled in one chunk with the token that broke them."""

    async def story(world):
        shared = PROMPTS[3]
        world.chat([*shared, FRAIL, *range(FRAIL_FOR)], max_tokens=5)
        for number in range(7):
            params = GREEDY if number % 2 else SamplingParams(seed=number)
            world.chat([*shared, 100 + number], max_tokens=12, params=params)
            await trio.sleep(0.002)

    told = tell(story, Shape(workers=2, step_s=0.04))
    assert told.world.chats[0].refusal.code == "not_finite" and told.replays > 0


def test_a_model_that_is_no_numbers_at_all_is_not_ready_and_every_request_ends():
    async def story(world):
        for name in world.workers():
            world.nodes[name].compute.damaged = True
        ready = await world.frontend().ready()
        assert not ready.ready and "not finite" in ready.why
        for chat in [world.chat(prompt, max_tokens=5) for prompt in PROMPTS]:
            await chat.finished()
            assert chat.refusal.code == "not_finite" and not chat.tokens
        world.chats.clear()  # none has the oracle's answer

    told = tell(story, Shape(workers=2))
    assert told.replays == 0 and all(node.life == 1 for node in told.world.nodes.values())


@pytest.mark.parametrize("worker", [0, 1, 2], ids=["first", "middle", "last"])
@pytest.mark.parametrize("tokens_max", [1, 3, 10])
def test_steps_that_find_no_memory_become_smaller_and_everybody_is_answered(worker, tokens_max):
    async def story(world):
        for prompt in PROMPTS:
            world.chat(prompt, max_tokens=20)
        await world.chats[0].finished()

    limits = [0, 0, 0]
    limits[worker] = tokens_max
    told = tell(story, Shape(workers=3, layers=9, step_tokens_max=tuple(limits)))
    assert told.replays > 0 and told.world.deaths == 0
    assert all(node.life == 1 for node in told.world.nodes.values())


def test_memory_that_comes_back_is_used_again():
    """A shortage in the middle of eight answers; afterwards steps grow."""

    async def story(world):
        await eight_in_the_middle(world)
        compute = world.nodes["w2"].compute
        compute.tokens_max = 1
        await trio.sleep(1.0)
        compute.tokens_max = 0
        for chat in world.chats:
            await chat.finished()
        await trio.sleep(60.0)
        world.chat(PROMPTS[6], max_tokens=3)

    told = tell(story)
    broker = told.world.coordinator.broker
    (engine,) = [route.scheduler for model in broker._models.values() for route in model.routes.values()]
    assert engine._bound.at(1e9) is None and told.replays >= 8


def test_a_row_that_never_finds_memory_ends_with_that_reason_and_its_worker_lives():
    async def story(world):
        world.nodes["w1"].compute.tokens_max = -1  # for none at all
        chat = world.chat([1, 2, 3], max_tokens=5)
        await chat.finished()
        assert chat.refusal.code == "does_not_fit" and "memory" in chat.refusal.message and not chat.tokens
        world.chats.clear()
        world.nodes["w1"].compute.tokens_max = 0
        world.chat([1, 2, 3], max_tokens=5)

    told = tell(story, Shape(workers=2))
    assert all(node.life == 1 for node in told.world.nodes.values())
