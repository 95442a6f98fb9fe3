"""Q: how fast one row is multiplied by matrices of 4 and of 8 bits, against plainly reading as many bytes.

The plain side is a loop in C that adds up all that it reads; both sides are one thread, and run in turn in one child.
Where no compiler is to be had there is no such product, and the budget is not met.
"""

import statistics

from hydra.bench.budget import Measured, median_ratio, spread
from hydra.bench.child import child

BITS = {"Q4": 4, "Q8": 8}


def measure_quant(*, rounds: int) -> dict[str, Measured]:
    """{"Q4": ..., "Q8": ...}. The first round warms up, and is not among them."""
    with child("hydra.bench.quant_child") as measuring:
        lanes = measuring.greeting[0]["lanes"]
        if lanes is None:
            none = Measured(ratio=0.0, detail={"lanes": None}, notes=("  there is no C compiler: no product of ours",))
            return dict.fromkeys(BITS, none)
        speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in BITS}
        n_bytes: dict[str, int] = {}
        for number in range(rounds + 1):
            for name, bits in BITS.items():
                both = measuring.ask(bits)
                n_bytes[name] = both["bytes"]
                if number:
                    speeds[name].append((both["bytes"] / both["ours"], both["bytes"] / both["plain"]))
    return {name: _measured(pairs, n_bytes[name], lanes) for name, pairs in speeds.items()}


def _measured(pairs: list[tuple[float, float]], n_bytes: int, lanes: str) -> Measured:
    detail = {
        "lanes": lanes,
        "bytes": n_bytes,
        "ours_gb_per_s": round(statistics.median(ours for ours, _ in pairs) / 1e9, 2),
        "plain_gb_per_s": round(statistics.median(plain for _, plain in pairs) / 1e9, 2),
        "rounds": spread(pairs),
    }
    return Measured(ratio=median_ratio(pairs), detail=detail)
