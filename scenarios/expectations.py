"""What stories have in common: eight answers in the middle, and what must be true of them in the end."""

from collections.abc import Callable, Sequence

import trio

from scenarios.theatre import Reader, Sight, Theatre

LOOK_EVERY_S = 0.1
WHOLE_WITHIN_S = 90.0
QUIET_WITHIN_S = 20.0


async def eight_in_the_middle(theatre: Theatre) -> list[Reader]:
    """Eight streams of which each has been told something, and none everything."""
    n_tokens = theatre.answer_tokens
    readers = [theatre.ask(prompt, n_tokens) for prompt in await theatre.prompts(8)]
    moment = theatre.rng.randint(2, n_tokens // 4)
    for reader in readers:
        await reader.until(moment)
    over = [reader.name for reader in readers if reader.over]
    assert not over, f"{', '.join(over)} ended before anything was injected: {[r.error for r in readers if r.over]}"
    theatre.bill.seen(f"{len(readers)} answers are under way, {sum(len(r.tokens) for r in readers)} tokens told")
    return readers


async def all_are_whole(theatre: Theatre, readers: Sequence[Reader]) -> None:
    """Each is told what an undisturbed cluster says, to the end and once."""
    with trio.move_on_after(WHOLE_WITHIN_S):
        for reader in readers:
            await reader.finished()
    for reader in readers:
        wanted = theatre.expected(reader.prompt, reader.max_tokens)
        told = list(reader.tokens)
        assert told == wanted[: len(told)], f"{reader.name} was told {told}, undisturbed it is {wanted}"
        assert reader.over, f"{reader.name} hangs after {len(told)} of {len(wanted)} tokens"
        assert reader.error is None, f"{reader.name} ended with the error {reader.error} after {len(told)} tokens"
        ending = f"{reader.name} ended with {reader.finish} after {len(told)} of {len(wanted)} tokens"
        assert (told, reader.finish) == (wanted, "length"), ending
    theatre.bill.seen(f"{len(readers)} answers are whole, and equal to the undisturbed ones")


async def nothing_is_held(theatre: Theatre) -> None:
    """No row and no KV block outlives its reader."""
    idle = await eventually(
        theatre, "nothing is held for anybody", lambda s: s.ready and not (s.running or s.waiting or s.kv_blocks_held)
    )
    theatre.bill.seen(f"no row is open, no KV block is held; {idle.stale_dropped} stale steps and results refused")


async def all_layers_are_held(theatre: Theatre, *, by: Callable[[str], bool] = lambda name: True) -> Sight:
    """Every layer once, by members of the cluster that `by` accepts."""

    def holds(sight: Sight) -> bool:
        layers = sorted(layer for held in sight.layers.values() for layer in held)
        whole = sight.ready and layers == list(range(theatre.n_layers))
        return whole and all(by(name) and name in sight.pids for name in sight.layers)

    sight = await eventually(theatre, "every layer has an owner", holds, WHOLE_WITHIN_S)
    theatre.bill.seen(f"layers: {sight.shares()}")
    return sight


async def eventually(
    theatre: Theatre, what: str, holds: Callable[[Sight], bool], within_s: float = QUIET_WITHIN_S
) -> Sight:
    """The first look for which it holds. Raises AssertionError after `within_s`."""
    deadline_s = trio.current_time() + within_s
    while not holds(sight := await theatre.look()):
        assert trio.current_time() < deadline_s, f"not within {within_s:.0f} s: {what}; last seen: {sight}"
        await trio.sleep(LOOK_EVERY_S)
    return sight
