"""QT: tokens per second that a quantised model brings. Q16: that no encoding makes a full micro-batch slower.

Both are measured in a child of one thread, whose two sides take turns.
"""

import statistics
from pathlib import Path

from hydra.bench.budget import Measured, median_ratio, spread
from hydra.bench.child import child
from hydra.bench.llama_dir import LlamaShape, write_llama

SHAPE = LlamaShape(layers=26)  # 0.3 B numbers
STEPS = 4


def measure_quantised(scratch: Path, *, rounds: int) -> Measured:
    """QT, of int4; int8 in a note. The first round warms up."""
    directory = write_llama(scratch / "quantised", SHAPE, bfloat16=True)
    pairs = {quantize: _pairs(directory, quantize, rounds) for quantize in ("int4", "int8")}
    detail = {
        quantize: {
            "tokens_per_s": round(statistics.median(STEPS / ours for ours, _ in both), 1),
            "float32_tokens_per_s": round(statistics.median(STEPS / plain for _, plain in both), 1),
            "rounds": spread([(plain, ours) for ours, plain in both]),
        }
        for quantize, both in pairs.items()
    }
    gain = {quantize: median_ratio([(plain, ours) for ours, plain in both]) for quantize, both in pairs.items()}
    return Measured(ratio=gain["int4"], detail=detail, notes=(f"  int8: {gain['int8']:.2f}",))


def _pairs(directory: Path, quantize: str, rounds: int) -> list[tuple[float, float]]:
    with child("hydra.bench.quantised_child", directory, quantize) as measuring:
        return [tuple(measuring.ask(STEPS)) for _ in range(rounds + 1)][1:]


def measure_many_rows(*, rounds: int) -> Measured:
    """Q16: the worst of all forms counts."""
    with child("hydra.bench.rows_child") as measuring:
        greeting = measuring.greeting[0]
        pairs: dict[str, list[tuple[float, float]]] = {form: [] for form in greeting["forms"]}
        for number in range(rounds + 1):
            for form in pairs:
                ours_s, plain_s = measuring.ask(form)
                if number:
                    pairs[form].append((plain_s, ours_s))
    gain = {form: round(median_ratio(both), 3) for form, both in pairs.items()}
    worst = min(gain, key=lambda form: gain[form])
    return Measured(
        ratio=gain[worst], detail={"rows": greeting["rows"], "by form": gain}, notes=(f"  the worst is {worst}",)
    )
