"""Readers close their connections in the middle of long answers. What they held is free at once; the others go on."""

import sys

from scenarios.expectations import all_are_whole, all_layers_are_held, nothing_is_held
from scenarios.story import Story, tell
from scenarios.theatre import Cast, Theatre

LEAVERS = 4


async def plot(theatre: Theatre) -> None:
    before = await all_layers_are_held(theatre)
    prompts = await theatre.prompts(8)
    told = (await theatre.look()).tokens_sent
    leavers = [theatre.ask((n, n), theatre.long_answer_tokens) for n in range(1, LEAVERS + 1)]
    stayers = [theatre.ask(prompt, theatre.answer_tokens) for prompt in prompts[LEAVERS:]]
    for reader in [*leavers, *stayers]:
        await reader.until(theatre.rng.randint(1, 8))
    left = [reader.name for reader in leavers if not reader.over]
    assert len(left) == LEAVERS, f"only {left} were still reading"
    theatre.bill.injected(f"{', '.join(left)} close their connections")
    for reader in leavers:
        reader.leave()
    await all_are_whole(theatre, stayers)
    await nothing_is_held(theatre)
    after = await theatre.look()
    unread = after.tokens_sent - told - len(stayers) * theatre.answer_tokens
    asked = LEAVERS * theatre.long_answer_tokens
    theatre.bill.seen(f"{unread} of the {asked} tokens that the leavers asked for were computed")
    assert unread < asked // 2, "what nobody reads was computed all the same"
    assert after.epoch == before.epoch, "a reader that left cost a route"


STORY = Story(
    name="reader_walks_away",
    about="four of eight readers close their connections in the middle of long answers",
    cast=Cast(workers=2),
    plot=plot,
)

if __name__ == "__main__":
    sys.exit(tell(STORY))
