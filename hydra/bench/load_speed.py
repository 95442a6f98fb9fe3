"""L: how fast a slice gets from files in the page cache into memory of its own, against reading the bytes plainly.

Both sides run in one child process, in turn, with the same number of threads, and each into memory that nobody has
touched. The plain side knows which bytes it wants, and checks and converts nothing.
"""

import statistics
from pathlib import Path
from typing import Any

from hydra.bench.budget import Measured, median_ratio, spread
from hydra.bench.child import child
from hydra.bench.llama_dir import LlamaShape, write_llama

SHAPE = LlamaShape(layers=16)


def measure_load(scratch: Path, *, rounds: int) -> Measured:
    """Stored dtype = compute dtype; beside it, as a note, bfloat16 files that become float32 on the way."""
    same = _pairs(write_llama(scratch / "load-float32", SHAPE), rounds)
    changed = _pairs(write_llama(scratch / "load-bfloat16", SHAPE, bfloat16=True), rounds)
    converting = median_ratio([pair for pair, _ in changed])
    detail = {"float32": _detail(same), "bfloat16_to_float32": _detail(changed)}
    return Measured(
        ratio=median_ratio([pair for pair, _ in same]),
        detail=detail,
        notes=(f"  {converting:.3f}  with bfloat16 files made float32 on the way (stored bytes per second)",),
    )


def _pairs(directory: Path, rounds: int) -> list[tuple[tuple[float, float], int]]:
    """((our stored bytes per second, the plain side's), bytes) per round; the first round is not among them."""
    with child("hydra.bench.load_child", directory) as measuring:
        found: list[tuple[tuple[float, float], int]] = []
        for number in range(rounds + 1):
            ours, plain = measuring.ask("load"), measuring.ask("plain")
            if ours["bytes"] != plain["bytes"]:
                raise RuntimeError(f"the two sides read different things: {ours} and {plain}")
            if number:
                per_s = (ours["bytes"] / ours["seconds"], plain["bytes"] / plain["seconds"])
                found.append((per_s, ours["bytes"]))
        return found


def _detail(found: list[tuple[tuple[float, float], int]]) -> dict[str, Any]:
    pairs = [pair for pair, _ in found]
    return {
        "bytes": found[0][1],
        "ours_gb_per_s": round(statistics.median(ours for ours, _ in pairs) / 1e9, 2),
        "plain_gb_per_s": round(statistics.median(plain for _, plain in pairs) / 1e9, 2),
        "ratio": round(median_ratio(pairs), 4),
        "rounds": spread(pairs),
    }
