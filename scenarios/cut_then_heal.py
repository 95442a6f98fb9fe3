"""The lines to a distant worker go silent while eight answers stream; nobody is told. Later they work again."""

import sys

import trio

from scenarios.expectations import all_are_whole, all_layers_are_held, eight_in_the_middle, eventually, nothing_is_held
from scenarios.story import Story, tell
from scenarios.theatre import Cast, Theatre

LOST_WITHIN_S = 20.0


async def plot(theatre: Theatre) -> None:
    distant = theatre.by_hand[0]
    sight = await all_layers_are_held(theatre)
    assert distant in sight.layers, f"{distant} holds no layer, so that cutting it off would prove nothing"
    readers = await eight_in_the_middle(theatre)
    await theatre.cut(distant)
    await eventually(theatre, f"{distant} is lost", lambda s: s.ready and distant not in s.pids, LOST_WITHIN_S)
    await all_layers_are_held(theatre, by=lambda name: name != distant)
    await all_are_whole(theatre, readers)
    await trio.sleep(theatre.rng.uniform(0.0, 3.0))

    await theatre.heal(distant)
    back = await eventually(theatre, f"{distant} is a member again", lambda s: distant in s.pids, 60.0)
    theatre.bill.seen(f"{distant} is a member again, as a spare: layers are {back.shares()}")
    await theatre.rebalance()
    await eventually(theatre, f"{distant} holds layers again", lambda s: s.ready and distant in s.layers, 30.0)
    await all_layers_are_held(theatre)
    await all_are_whole(theatre, await eight_in_the_middle(theatre))
    await nothing_is_held(theatre)


STORY = Story(
    name="cut_then_heal",
    about="the lines to a distant worker fall silent in the middle of eight answers, and work again later",
    cast=Cast(workers=3, by_hand=1, distant=True),
    plot=plot,
)

if __name__ == "__main__":
    sys.exit(tell(STORY))
