"""The coordinator is killed while eight answers stream. Its successor has a higher term, and nobody loses a token."""

import sys

from scenarios.expectations import all_are_whole, all_layers_are_held, eight_in_the_middle, eventually, nothing_is_held
from scenarios.story import Story, tell
from scenarios.theatre import Cast, Theatre


async def plot(theatre: Theatre) -> None:
    before = await all_layers_are_held(theatre)
    readers = await eight_in_the_middle(theatre)
    await theatre.kill("coordinator")
    await all_are_whole(theatre, readers)
    former = before.pids["coordinator"]
    after = await eventually(
        theatre, "another coordinator", lambda s: s.ready and s.pids["coordinator"] != former, 60.0
    )
    theatre.bill.seen(f"the coordinator is pid {after.pids['coordinator']}; epoch {before.epoch} became {after.epoch}")
    assert after.epoch != before.epoch, "two coordinators spoke in the same epoch"
    await all_layers_are_held(theatre)
    await nothing_is_held(theatre)


STORY = Story(
    name="kill_coordinator",
    about="SIGKILL of the coordinator in the middle of eight answers",
    cast=Cast(workers=3),
    plot=plot,
)

if __name__ == "__main__":
    sys.exit(tell(STORY))
