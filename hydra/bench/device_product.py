"""G: how much of a CUDA device's bandwidth the products with 4-bit matrices have at one row."""

import statistics

from hydra.bench.budget import Measured, median_ratio, spread
from hydra.bench.child import child


def measure_device_product(device: str, *, rounds: int) -> Measured:
    with child("hydra.bench.device_product_child", device, rounds) as measuring:
        found = measuring.hear()
    pairs = [(one["ours_per_s"], one["copied_per_s"]) for one in found]
    return Measured(
        ratio=median_ratio(pairs),
        detail={
            "ours_gb_per_s": round(statistics.median(ours for ours, _ in pairs) / 1e9, 1),
            "copied_gb_per_s": round(statistics.median(copied for _, copied in pairs) / 1e9, 1),
            "rounds": spread(pairs),
        },
    )
