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
DEVICE_SHAPE = LlamaShape(layers=4, hidden=4096, intermediate=11008, heads=32, kv_heads=8)  # as a GPU is given them


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


def measure_load(scratch: Path, *, rounds: int, device: str = "cpu") -> Measured:
    """Stored dtype = compute dtype (float32 on the CPU, else bfloat16); as a note, the other dtype changed to it."""
    native, other = ("float32", "bfloat16") if device == "cpu" else ("bfloat16", "float32")
    found = {}
    for stored in (native, other):
        shape = SHAPE if device == "cpu" else DEVICE_SHAPE
        directory = write_llama(scratch / f"load-{stored}", shape, bfloat16=stored == "bfloat16")
        found[stored] = _rounds(directory, rounds, device, native)
    same, changed = found[native], found[other]
    notes = [f"  {_ratio(changed):.3f}  with {other} files made {native} on the way (stored bytes per second)"]
    if device == "cpu":
        packing = statistics.median(one.pack_s / one.ours_s for one in same)
        notes.append(f"  {packing:.3f}  packing matrices for the CPU, not counted above / our side of the load")
    return Measured(
        ratio=_ratio(same), detail={native: _detail(same), f"{other}_to_{native}": _detail(changed)}, notes=tuple(notes)
    )


def _rounds(directory: Path, rounds: int, device: str, dtype: str) -> list[_Round]:
    """The first round warms up, and is not among them."""
    with child("hydra.bench.load_child", directory, device, dtype) as measuring:
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
