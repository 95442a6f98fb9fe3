"""A worker is killed while eight answers stream: once by itself, once together with whoever would start it again."""

import sys

from scenarios.expectations import all_are_whole, all_layers_are_held, eight_in_the_middle, eventually, nothing_is_held
from scenarios.story import Story, tell
from scenarios.theatre import Cast, Theatre


async def plot(theatre: Theatre) -> None:
    sight = await all_layers_are_held(theatre)
    supervised = [name for name in sight.layers if name not in theatre.by_hand]
    victim = theatre.rng.choice(supervised)
    readers = await eight_in_the_middle(theatre)
    await theatre.kill(victim)
    await all_are_whole(theatre, readers)
    killed = sight.pids[victim]
    back = await eventually(theatre, f"{victim} is back", lambda s: s.pids.get(victim, killed) != killed, 60.0)
    theatre.bill.seen(f"{victim} is back as pid {back.pids[victim]}")

    lost = theatre.by_hand[0]
    await all_layers_are_held(theatre)
    readers = await eight_in_the_middle(theatre)
    await theatre.kill(lost, returns=False)
    await all_are_whole(theatre, readers)
    await all_layers_are_held(theatre, by=lambda name: name != lost)
    await nothing_is_held(theatre)


STORY = Story(
    name="kill_worker",
    about="SIGKILL of a worker in the middle of eight answers; of one that returns, then of one that never does",
    cast=Cast(workers=3, by_hand=1),
    plot=plot,
)

if __name__ == "__main__":
    sys.exit(tell(STORY))
