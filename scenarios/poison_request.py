"""One request kills every worker that computes it. After its third death it is told an error; the others are whole."""

import sys

from scenarios.expectations import all_are_whole, all_layers_are_held, eight_in_the_middle, nothing_is_held
from scenarios.story import Story, tell
from scenarios.theatre import Cast, Theatre

DEATHS = 3


async def plot(theatre: Theatre) -> None:
    await all_layers_are_held(theatre)
    readers = await eight_in_the_middle(theatre)
    theatre.bill.injected(f"a request with the token {theatre.poison}, of which workers die")
    poisoned = theatre.ask((5, theatre.poison), theatre.answer_tokens)
    await poisoned.finished()
    theatre.bill.seen(f"it ended with {poisoned.error} after {theatre.poison_deaths()} deaths")
    assert poisoned.error == "replay_limit", f"it ended with {poisoned.error}, {poisoned.finish}"
    assert not poisoned.tokens, f"somebody computed it: {poisoned.tokens}"
    assert theatre.poison_deaths() == DEATHS, f"{theatre.poison_deaths()} workers died of it instead of {DEATHS}"
    await all_are_whole(theatre, readers)
    await all_layers_are_held(theatre)
    await nothing_is_held(theatre)


STORY = Story(
    name="poison_request",
    about="a request that kills every worker it reaches, beside eight others",
    cast=Cast(workers=3, mortal=True),
    plot=plot,
)

if __name__ == "__main__":
    sys.exit(tell(STORY))
