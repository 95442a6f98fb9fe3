"""A worker is stopped while eight answers stream, for longer than its lease, and goes on.

A parent kills a child that has been silent for ten seconds. So a pause ends in one of two ways, and the seed chooses
how long it is: the same process greets again and is fenced, or another one has taken its name.
"""

import sys

import trio

from scenarios.expectations import all_are_whole, all_layers_are_held, eight_in_the_middle, eventually, nothing_is_held
from scenarios.story import Story, tell
from scenarios.theatre import Cast, Theatre

PAUSES_S = (6.0, 8.0, 10.5)


async def plot(theatre: Theatre) -> None:
    sight = await all_layers_are_held(theatre)
    victim = sight.holder_of(theatre.rng.randrange(theatre.n_layers))
    pause_s = theatre.rng.choice(PAUSES_S)
    readers = await eight_in_the_middle(theatre)
    await theatre.pause(victim)
    stopped_s = trio.current_time()
    await eventually(theatre, f"{victim} is lost", lambda s: s.ready and victim not in s.pids, pause_s)
    theatre.bill.seen(f"{victim} is lost, and the others go on without it")
    await trio.sleep_until(stopped_s + pause_s)
    await theatre.resume(victim)
    await all_are_whole(theatre, readers)
    back = await eventually(theatre, f"{victim} is a member again", lambda s: s.ready and victim in s.pids, 60.0)
    same = back.pids[victim] == sight.pids[victim]
    theatre.bill.seen(f"{victim} is back: {'the same process' if same else 'a new process, its parent lost patience'}")
    await nothing_is_held(theatre)


STORY = Story(
    name="pause_worker",
    about="SIGSTOP of a worker in the middle of eight answers, for longer than its lease",
    cast=Cast(workers=3),
    plot=plot,
)

if __name__ == "__main__":
    sys.exit(tell(STORY))
