"""Plays one seed and prints its story: `python -m tests.sim.run --seed N`. `--seeds N` plays N from there."""

import argparse
import sys
import time
import traceback
from functools import partial

from hydra.simulation.determinism import quiet, run_sim
from tests.sim.swarm import LASTING, SURVIVED, means_plot, play, plot_of


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--log", action="store_true", help="let the actors' log lines through")
    parser.add_argument("--means", action="store_true", help="hops, loads and state fail too")
    parser.add_argument("--lasting", nargs="*", default=SURVIVED, choices=LASTING, help="... some of them for good")
    asked = parser.parse_args()
    plot_for = partial(means_plot, lasting=asked.lasting) if asked.means else plot_of
    if not asked.log:
        quiet()
    began_s, failed = time.perf_counter(), []
    for seed in range(asked.seed, asked.seed + asked.seeds):
        try:
            outcome = run_sim(seed, play, plot_for(seed))
        except Exception as why:  # noqa: BLE001 - whatever a story dies of is its verdict
            failed.append(seed)
            if asked.seeds == 1:
                traceback.print_exc()
            else:
                print(f"seed {seed}: {cause(why)!s:.300}")
            continue
        if asked.seeds == 1:
            print(outcome.plot.headline(), *outcome.story, sep="\n")
            print(f"trace {outcome.trace:08x}, {outcome.virtual_s:.1f} virtual s, stale {outcome.stale_dropped}")
    took_s = time.perf_counter() - began_s
    print(f"{asked.seeds} seeds in {took_s:.1f} s, {60 * asked.seeds / took_s:.0f} per minute; failed: {failed}")
    return 1 if failed else 0


def cause(why: BaseException) -> BaseException:
    """The one exception inside Trio's groups."""
    while isinstance(why, BaseExceptionGroup):
        why = why.exceptions[0]
    return why


if __name__ == "__main__":
    sys.exit(main())
