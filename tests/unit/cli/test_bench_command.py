"""The table of budgets: which are asked for, and what is printed of them. Nothing is measured here."""

import json
import os

import pytest

from hydra.bench import command
from hydra.bench.budget import BUDGETS, Measured
from hydra.bench.llama_dir import LlamaShape, write_llama
from hydra.bench.load_speed import measure_load
from hydra.bench.quant_child import encoded_matrices, halves_of, time_round
from hydra.bench.quant_speed import measure_quant
from hydra.bench.quantised_speed import measure_many_rows, measure_quantised
from hydra.complaint import Complaint
from hydra.kernels.native.library import native_library, promise_library
from hydra.processes.native_build import begin_native_build
from hydra.store.models.model_dir import describe


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ((), command.BUDGET_NAMES),
        (("load",), ("L",)),
        (("l",), ("L",)),
        (("R", "p1"), ("P1", "R")),
        (("L", "load"), ("L",)),
        (("quant",), ("Q",)),
    ],
)
def test_names_and_words_for_budgets(asked, names):
    assert command.wanted_names(asked) == names


def test_an_unknown_budget_is_a_usage_error():
    with pytest.raises(Complaint) as no:
        command.wanted_names(("P3",))
    assert no.value.exit_code == 2


def test_devices_that_only_one_side_runs_on_are_refused():
    for device in ("cpu", "cuda:0", "cuda:0,cuda:1"):
        command.check_device(device)
    for device in ("mps", "cuda:0,cpu", ""):
        with pytest.raises(Complaint) as no:
            command.check_device(device)
        assert no.value.exit_code == 2


@pytest.mark.parametrize(("ratio", "verdict"), [(0.95, "ok"), (0.7, "ok"), (0.69, "NOT MET")])
def test_more_is_better_for_loading_and_notes_follow_their_line(ratio, verdict):
    found = {"L": Measured(ratio=ratio, detail={"bytes": 7}, notes=("a note",))}
    _, line, note = command.as_table(found).splitlines()
    assert verdict in line and note.strip() == "a note"
    assert command.all_hold(found) == (verdict == "ok")
    said = json.loads(json.dumps(command.as_json(found)))["L"]
    assert said == {"ratio": ratio, "must": 0.7, "aim": 0.9, "ok": verdict == "ok", "detail": {"bytes": 7}}


def test_every_budget_is_in_the_table_once():
    assert len({budget.name for budget in BUDGETS}) == len(BUDGETS)


@pytest.mark.parametrize(("bfloat16", "dtype"), [(False, "float32"), (True, "bfloat16")])
def test_the_served_directory_is_a_model_in_the_asked_dtype(tmp_path, bfloat16, dtype):
    shape = LlamaShape(layers=2, hidden=32, intermediate=48, heads=2, kv_heads=1, vocab=300)
    spec = describe(str(write_llama(tmp_path / "model", shape, bfloat16=bfloat16))).spec
    assert spec.stored_dtype == dtype
    assert spec.slice_bytes(0, 2, "float32") == 2 * shape.layer_bytes + 2 * shape.head_bytes + 4 * shape.hidden


@pytest.mark.long
def test_both_sides_of_loading_read_the_same_bytes(tmp_path, monkeypatch):
    """One short round over a small model: the figures are not looked at, only that there are any, of all bytes."""
    shape = LlamaShape(layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, vocab=300)
    monkeypatch.setattr("hydra.bench.load_speed.SHAPE", shape)
    found = measure_load(tmp_path, rounds=1)
    whole = 2 * shape.layer_bytes + 2 * shape.head_bytes + 4 * shape.hidden
    assert found.detail["float32"]["bytes"] == 2 * found.detail["bfloat16_to_float32"]["bytes"] == whole
    assert found.ratio > 0 and ["bfloat16" in note or "packing" in note for note in found.notes] == [True, True]


@pytest.mark.parametrize("bits", [4, 8])
def test_a_round_of_products_is_of_every_byte_once(bits):
    promise_library(begin_native_build(os.environ))
    try:
        library = native_library()
        if library is None:
            pytest.skip("this machine has no C compiler")
        matrices = encoded_matrices(bits, 10_000, rows=8, columns=256)
        assert sum(matrix.n_bytes for matrix in matrices[:-1]) < 10_000
        both = time_round(halves_of(matrices, library))
        assert both["bytes"] == len(matrices) * (8 * 256 * bits // 8 + 8 * 8 * 2) >= 10_000
        assert both["ours"] > 0 and both["plain"] > 0
    finally:
        promise_library(lambda: None)


def test_without_a_compiler_the_products_budget_is_not_met(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    found = measure_quant(rounds=1)
    assert set(found) == {"Q4", "Q8"} and not command.all_hold(found)
    assert "no C compiler" in command.as_table(found)


@pytest.mark.long
def test_a_quantised_model_is_measured_beside_the_published_one(tmp_path, monkeypatch):
    shape = LlamaShape(layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, vocab=300)
    monkeypatch.setattr("hydra.bench.quantised_speed.SHAPE", shape)
    found = measure_quantised(tmp_path, rounds=1)
    assert found.ratio > 0 and "int8" in found.notes[0]
    assert [len(found.detail[quantize]["rounds"]) for quantize in ("int4", "int8")] == [1, 1]


@pytest.mark.long
def test_of_many_rows_the_worst_form_counts():
    found = measure_many_rows(rounds=1)
    assert found.ratio == min(found.detail["by form"].values()) > 0
    assert len(found.detail["by form"]) == 12


def test_a_budget_of_the_gpu_is_not_passed_over_in_silence():
    everything = command.wanted_names(())
    assert command.measurable_on(everything, "cuda:0", asked=False) == everything
    assert set(everything) - set(command.measurable_on(everything, "cpu", asked=False)) == {"G"}
    with pytest.raises(Complaint, match="no budget G on the CPU"):
        command.measurable_on(("G",), "cpu", asked=True)
