"""L: how fast a slice gets from files in the page cache into memory of its own, against reading the bytes plainly.

Both sides run in one child process, in turn, with the same number of threads, and each into memory that nobody has
touched. The plain side knows which bytes it wants, and checks and converts nothing. Bringing matrices into the layout
in which they are multiplied is no part of either side, and is reported beside them.
"""

import statistics
from pathlib import Path
from typing import Any

import attrs

from hydra.bench.budget import Measured, median_ratio, spread
from hydra.bench.child import child
from hydra.bench.llama_dir import LlamaShape, write_llama

SHAPE = LlamaShape(layers=16)


@attrs.frozen(kw_only=True)
class _Round:
    """One load of each side."""

    n_bytes: int
    ours_s: float
    pack_s: float
    plain_s: float

    @property
    def speeds(self) -> tuple[float, float]:
        """(our stored bytes per second, the plain side's)."""
        return self.n_bytes / self.ours_s, self.n_bytes / self.plain_s


def measure_load(scratch: Path, *, rounds: int) -> Measured:
    """Stored dtype = compute dtype; beside it, as a note, bfloat16 files that become float32 on the way."""
    same = _rounds(write_llama(scratch / "load-float32", SHAPE), rounds)
    changed = _rounds(write_llama(scratch / "load-bfloat16", SHAPE, bfloat16=True), rounds)
    packing = statistics.median(one.pack_s / one.ours_s for one in same)
    return Measured(
        ratio=_ratio(same),
        detail={"float32": _detail(same), "bfloat16_to_float32": _detail(changed)},
        notes=(
            f"  {_ratio(changed):.3f}  with bfloat16 files made float32 on the way (stored bytes per second)",
            f"  {packing:.3f}  packing matrices for the CPU, not counted above / our side of the load",
        ),
    )


def _rounds(directory: Path, rounds: int) -> list[_Round]:
    """The first round warms up, and is not among them."""
    with child("hydra.bench.load_child", directory) as measuring:
        found: list[_Round] = []
        for number in range(rounds + 1):
            ours, plain = measuring.ask("load"), measuring.ask("plain")
            if ours["bytes"] != plain["bytes"]:
                raise RuntimeError(f"the two sides read different things: {ours} and {plain}")
            if number:
                pack_s, plain_s = ours["pack_seconds"], plain["seconds"]
                found.append(_Round(n_bytes=ours["bytes"], ours_s=ours["seconds"], pack_s=pack_s, plain_s=plain_s))
        return found


def _ratio(found: list[_Round]) -> float:
    return median_ratio([one.speeds for one in found])


def _detail(found: list[_Round]) -> dict[str, Any]:
    return {
        "bytes": found[0].n_bytes,
        "ours_gb_per_s": round(statistics.median(one.speeds[0] for one in found) / 1e9, 2),
        "plain_gb_per_s": round(statistics.median(one.speeds[1] for one in found) / 1e9, 2),
        "pack_s": round(statistics.median(one.pack_s for one in found), 3),
        "ratio": round(_ratio(found), 4),
        "rounds": spread([one.speeds for one in found]),
    }
