"""Which budgets are measured, and how the table is printed."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.bench.budget import BUDGETS, Measured, RatioBudget
from hydra.complaint import Complaint

BUDGET_NAMES = ("P1", "P2", "P4", "R", "L", "G", "Q")
WORDS = {"LOAD": "L", "QUANT": "Q"}  # a budget by what it is about


def wanted_names(names: Sequence[str]) -> tuple[str, ...]:
    """The asked budgets in the table's order; none asked means all. Raises Complaint (exit 2)."""
    asked = {WORDS.get(name.upper(), name.upper()) for name in names} or set(BUDGET_NAMES)
    unknown = asked - set(BUDGET_NAMES)
    if unknown:
        known = ", ".join(BUDGET_NAMES)
        raise Complaint(
            f"there is no budget {sorted(unknown)[0]!r}", "it is not in the table", f"choose from {known}", 2
        )
    return tuple(name for name in BUDGET_NAMES if name in asked)


def measurable_on(names: Sequence[str], device: str, *, asked: bool) -> tuple[str, ...]:
    """Those that can be measured there. Raises Complaint (exit 2) where one that cannot was asked for by its name."""
    if device == "cpu" and "G" in names:
        if asked:
            raise Complaint("no budget G on the CPU", "it is about products on CUDA", "add --device cuda:0", 2)
        return tuple(name for name in names if name != "G")
    return tuple(names)


def check_device(device: str) -> None:
    """Raises Complaint (exit 2) for what the other sides of the ratios cannot run on."""
    if device != "cpu" and not all(name.startswith("cuda") for name in device.split(",")):
        raise Complaint(f"no bench on {device!r}", "the other sides run on the CPU or on CUDA", "say cpu or cuda:N", 2)


def measure_budgets(
    names: Sequence[str], *, device: str, quick: bool, say: Callable[[str], None]
) -> dict[str, Measured]:
    """One after the other; `say` hears what is under way."""
    from hydra.bench.device_product import measure_device_product
    from hydra.bench.hop import measure_hop
    from hydra.bench.load_speed import measure_load
    from hydra.bench.pipeline import measure_timed, measure_torch
    from hydra.bench.quant_speed import measure_quant
    from hydra.bench.quantised_memory import measure_quantised_memory
    from hydra.bench.quantised_speed import measure_many_rows, measure_quantised
    from hydra.bench.token_time import measure_token_time

    found: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory(prefix="hydra-bench-") as scratch:
        if "P1" in names or "R" in names:
            say("P1, R: a cluster of two workers, and a bare loop beside it")
            both = measure_token_time(Path(scratch), rounds=3 if quick else 9, device=device)
            found |= {name: measured for name, measured in both.items() if name in names}
        if "P2" in names:
            say("P2: hidden states to and fro")
            found["P2"] = measure_hop(blocks=5 if quick else 25)
        if "P4" in names:
            say("P4a: pipelines of timed stages")
            found["P4a"] = measure_timed(rounds=2 if quick else 5)
            say("P4b: a pipeline of torch stages, and its processes running free")
            found["P4b"] = measure_torch(Path(scratch), rounds=2 if quick else 5)
        if "L" in names:
            say("L: a slice loaded, and the same bytes plainly read")
            found["L"] = measure_load(Path(scratch), rounds=5 if quick else 15, device=device.partition(",")[0])
        if "G" in names:
            say("G: products with 4-bit matrices on the device, and copies of as many bytes")
            found["G"] = measure_device_product(device.partition(",")[0], rounds=5 if quick else 15)
        if "Q" in names:
            say("Q: one row by encoded matrices, and their bytes plainly read")
            found |= measure_quant(rounds=5 if quick else 15)
            say("Q16: 16 rows by encoded matrices, and by float32 ones")
            found["Q16"] = measure_many_rows(rounds=5 if quick else 15)
            say("QT: a model in int4 and in int8, and in float32")
            found["QT"] = measure_quantised(Path(scratch), rounds=5 if quick else 15)
            say("RQ: a cluster of a model that is quantised while it is loaded")
            found["RQ"] = measure_quantised_memory(Path(scratch))
    return found


def as_json(found: dict[str, Measured]) -> dict[str, Any]:
    return {
        budget.name: {
            "ratio": round(found[budget.name].ratio, 4),
            "must": budget.must,
            "aim": budget.aim,
            "ok": budget.holds(found[budget.name].ratio),
            "detail": found[budget.name].detail,
        }
        for budget in BUDGETS
        if budget.name in found
    }


def as_table(found: dict[str, Measured]) -> str:
    lines = [f"{'':<5}{'RATIO':>7}{'MUST':>9}{'AIM':>9}"]
    for budget in BUDGETS:
        if budget.name in found:
            lines.append(_line(budget, found[budget.name].ratio))
            lines += [f"{'':<5}{note}" for note in found[budget.name].notes]
    return "\n".join(lines)


def _line(budget: RatioBudget, ratio: float) -> str:
    sign = ">=" if budget.higher else "<="
    verdict = "ok" if budget.holds(ratio) else "NOT MET"
    return (
        f"{budget.name:<5}{ratio:>7.3f}{sign:>4} {budget.must:<4}{sign:>4} {budget.aim:<4}  {verdict:<8} {budget.what}"
    )


def all_hold(found: dict[str, Measured]) -> bool:
    return all(budget.holds(found[budget.name].ratio) for budget in BUDGETS if budget.name in found)
