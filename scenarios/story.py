"""A story: whom it needs and what happens. Telling it ends in a verdict and an exit status.

python -m scenarios.kill_worker --seed 7      # simulated: virtual time, the same seed gives the same history
python -m scenarios.kill_worker --real        # processes, signals, sockets
"""

import argparse
import traceback
from collections.abc import Awaitable, Callable, Sequence

import attrs
import trio

from scenarios.playbill import Playbill
from scenarios.theatre import Cast, Theatre

Plot = Callable[[Theatre], Awaitable[None]]

SIMULATED_WITHIN_S = 600.0  # virtual
REAL_WITHIN_S = 240.0


@attrs.frozen(kw_only=True)
class Story:
    """`plot` raises AssertionError when anything is not as it must be."""

    name: str
    about: str
    cast: Cast
    plot: Plot


def tell(story: Story, argv: Sequence[str] | None = None) -> int:
    """The program of a scenario. Returns the exit status: 0 passed, 1 failed."""
    parser = argparse.ArgumentParser(prog=f"python -m scenarios.{story.name}", description=story.about)
    parser.add_argument("--seed", type=int, default=1, help="chooses victims and moments (default 1)")
    parser.add_argument("--real", action="store_true", help="real processes and signals instead of simulated ones")
    asked = parser.parse_args(argv)
    bill = Playbill()
    bill.headline(f"{story.name}, {'real processes' if asked.real else 'simulated'}, seed {asked.seed}: {story.about}")
    try:
        _play_real(story, asked.seed, bill) if asked.real else _play_simulated(story, asked.seed, bill)
    except Exception as error:  # noqa: BLE001 - whatever a story dies of is its verdict
        for line in _details(error):
            bill.headline(line)
        bill.verdict("FAILED", _in_one_line(error))
        return 1
    bill.verdict("passed", "every answer that had to be whole was whole, and nothing is left behind")
    return 0


def _play_simulated(story: Story, seed: int, bill: Playbill) -> None:
    from hydra.simulation.determinism import quiet, run_sim
    from scenarios.simulated import open_simulated

    async def play() -> None:
        async with open_simulated(story.cast, seed, bill) as theatre:
            await _act(story, theatre, SIMULATED_WITHIN_S)

    quiet()
    run_sim(seed, play)


def _play_real(story: Story, seed: int, bill: Playbill) -> None:
    from scenarios.real import open_real

    async def play() -> None:
        async with open_real(story.cast, seed, bill) as theatre:
            await _act(story, theatre, REAL_WITHIN_S)

    trio.run(play)


async def _act(story: Story, theatre: Theatre, within_s: float) -> None:
    with trio.move_on_after(within_s) as scope:
        await story.plot(theatre)
        await theatre.close()
    assert not scope.cancelled_caught, f"not over within {within_s:.0f} s"


def _causes(why: BaseException) -> list[BaseException]:
    """The exceptions inside Trio's groups."""
    if isinstance(why, BaseExceptionGroup):
        return [cause for inner in why.exceptions for cause in _causes(inner)]
    return [why]


def _in_one_line(why: BaseException) -> str:
    first = _causes(why)[0]
    return str(first).split("\n")[0] if isinstance(first, AssertionError) and str(first) else repr(first)


def _details(why: BaseException) -> list[str]:
    """What a theatre noted about its end, and the way to whatever is not a plain disappointment."""
    notes = [note for cause in [why, *_causes(why)] for note in getattr(cause, "__notes__", ())]
    strange = [cause for cause in _causes(why) if not isinstance(cause, AssertionError)]
    return [*dict.fromkeys(notes), *("".join(traceback.format_exception(cause)).rstrip() for cause in strange)]
