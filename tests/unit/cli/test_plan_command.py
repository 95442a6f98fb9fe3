"""`hydra plan` as a person types it: the split, the figures, and the exit codes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from hydra.bench.llama_dir import LlamaShape, write_llama
from hydra.cli.main import main
from hydra.store.hub.hub import HEADER_GUESS_BYTES
from tests.fake_hub import fake_hub
from tests.unit.store.quantised.checkpoints import HIDDEN, LINEARS, write_checkpoint

ROOT = Path(__file__).parents[3]
GB = 10**9
SHAPE = LlamaShape(layers=32, hidden=32, intermediate=48, heads=2, kv_heads=1, vocab=300)


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> str:
    return str(write_llama(tmp_path_factory.mktemp("plan") / "model", SHAPE))


@pytest.fixture
def plan(monkeypatch, capsys, tmp_path):
    """`plan("MODEL", "--nodes", "1,2")`: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)  # no config.toml lies there
    monkeypatch.setattr("hydra.cli.models.set_up_logging", lambda role: None)  # it is for a process, which goes on here

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hydra", "plan", *words])
        with pytest.raises(SystemExit) as left:
            main()
        told = capsys.readouterr()
        return int(left.value.code or 0), told.out, told.err

    return run


def test_the_worked_example(plan, directory):
    code, out, err = plan(directory, "--nodes", "11,32,32")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if line.startswith("n")]
    assert [(row[0], row[1], row[2]) for row in rows] == [
        ("n0", "11.000", "0-4"),
        ("n1", "32.000", "5-17"),
        ("n2", "32.000", "18-31"),
    ]
    assert [row[5] for row in rows] == ["2.000"] * 3
    assert "32 layers, stored as float32, computed in float32" in out
    assert "fits: sequences of up to" in out


BITS = {"int8": 8, "int4": 4}


@pytest.mark.parametrize(("dtype", "item_bytes"), [(None, 4), ("auto", 4), ("bfloat16", 2), ("float16", 2)])
def test_every_byte_is_accounted_for(plan, directory, dtype, item_bytes):
    code, out, _ = plan(directory, "--nodes", "0.01,0.02,0.02", "--json", *(["--dtype", dtype] if dtype else []))
    said = json.loads(out)
    assert code == 0 and said["fits"] is True
    assert said["layer_bytes"] == [SHAPE.layer_bytes * item_bytes // 4] * 32
    assert said["embedding_bytes"] == said["head_bytes"] == SHAPE.head_bytes * item_bytes // 4
    assert said["kv_bytes_per_token"] == SHAPE.kv_token_bytes * item_bytes // 4
    norm = 32 * item_bytes
    assert said["weight_bytes"] == sum(said["layer_bytes"]) + said["embedding_bytes"] + said["head_bytes"] + norm
    assert sum(node["weight_bytes"] for node in said["nodes"]) == said["weight_bytes"]
    for node, memory in zip(said["nodes"], (10**7, 2 * 10**7, 2 * 10**7), strict=True):
        parts = ("weight_bytes", "kv_bytes", "reserve_bytes", "free_bytes")
        assert node["memory_bytes"] == memory == sum(node[part] for part in parts)
        assert all(node[part] >= 0 for part in parts) and node["reserve_bytes"] == memory // 2
        own = said["kv_bytes_per_token"] * (node["end_layer"] - node["first_layer"]) // 32
        assert said["kv_tokens"] * own <= node["kv_bytes"]
    assert said["max_model_len"] <= said["kv_tokens"] and said["kv_tokens"] % 16 == 0


@pytest.mark.parametrize(("name", "stored_bits"), [("packed", 4), ("gptq, 8 bits by row", 8), ("float8 in tiles", 8)])
def test_a_quantised_model_is_planned_by_the_bytes_that_it_keeps(plan, tmp_path, name, stored_bits):
    directory = str(write_checkpoint(tmp_path / "model", name))
    said = {dtype: json.loads(plan(directory, "--nodes", "1", "--json", *words)[1])
            for dtype, words in ((None, ()), ("float32", ("--dtype", "float32")))}  # fmt: skip
    matrices, norms = sum(rows * columns for rows, columns in LINEARS.values()), 2 * HIDDEN
    for layer in said[None]["layer_bytes"]:
        kept = layer - 2 * norms
        assert matrices * stored_bits // 8 < kept < 1.06 * matrices * stored_bits // 8  # the scales with them
    assert said[None]["stored_dtype"] == said[None]["dtype"] == "float16"
    grown = said["float32"]["layer_bytes"][0] - said[None]["layer_bytes"][0]
    assert grown == 2 * norms, "what stays encoded does not grow with the dtype"


def test_a_model_that_is_quantised_while_it_is_loaded_is_planned_so(plan, directory):
    plain = json.loads(plan(directory, "--nodes", "1", "--json")[1])
    said = {wish: json.loads(plan(directory, "--nodes", "1", "--json", "--quantize", wish)[1]) for wish in BITS}
    for wish, bits in BITS.items():
        assert said[wish]["quantize"] == wish
        norms = 2 * 32 * 4
        matrices = (plain["layer_bytes"][0] - norms) // 4  # numbers, and a scale of 2 bytes to each 32 at most 16 more
        kept = said[wish]["layer_bytes"][0] - norms - matrices * bits // 8
        assert matrices // 32 * 2 <= kept <= matrices // 16 * 2
        assert 8 / 32 < said[wish]["head_bytes"] / plain["head_bytes"] < 9 / 32
    assert "made int4 while loaded, computed in float32" in plan(directory, "--nodes", "1", "--quantize", "int4")[1]


def test_what_is_quantised_already_is_not_quantised_again(plan, tmp_path):
    directory = str(write_checkpoint(tmp_path / "model", "packed"))
    code, _, err = plan(directory, "--nodes", "1", "--quantize", "int8")
    assert code == 2 and "is quantised already" in err and "it is --quantize here" in err


def test_a_tied_head_is_counted_at_both_ends(plan, directory, tmp_path):
    copy = tmp_path / "tied"
    copy.mkdir()
    for file in Path(directory).iterdir():
        (copy / file.name).symlink_to(file)
    assert plan(str(copy), "--nodes", "1")[0] == 7, "its files lead out of it"
    shutil.rmtree(copy)
    shutil.copytree(directory, copy)
    config = json.loads((copy / "config.json").read_text()) | {"tie_word_embeddings": True}
    (copy / "config.json").write_text(json.dumps(config))
    ends = load_file(copy / "ends.safetensors")
    save_file(ends | {"lm_head.weight": ends["model.embed_tokens.weight"]}, copy / "ends.safetensors")
    one, two = (json.loads(plan(str(copy), "--json", "--nodes", nodes)[1]) for nodes in ("1", "1,1"))
    assert one["tied"] and one["head_bytes"] == one["embedding_bytes"]
    assert sum(node["weight_bytes"] for node in two["nodes"]) == one["weight_bytes"] + one["embedding_bytes"]


def test_what_does_not_fit_exits_3_with_the_numbers(plan, directory):
    code, out, err = plan(directory, "--nodes", "0.001,0.001")
    assert (code, out) == (3, "")
    assert "does not fit: LlamaForCausalLM with 32 layers in float32 needs" in err
    assert "n0: layers 0-" in err and "n1: layers" in err and "kept in reserve" in err
    code, out, _ = plan(directory, "--nodes", "0.001,0.001", "--json")
    said = json.loads(out)
    assert (code, said["fits"], said["nodes"]) == (3, False, [])
    assert "n1: layers" in said["reason"] and said["layer_bytes"]


def test_a_longer_sequence_needs_more(plan, directory):
    assert plan(directory, "--nodes", "0.02", "--max-model-len", "100")[0] == 0
    code, _, err = plan(directory, "--nodes", "0.0102", "--max-model-len", "2000")
    assert code == 3 and "KV for 2000 tokens" in err


@pytest.mark.parametrize(("kind", "limit"), [("linear", 8192), ("dynamic", 8192), ("yarn", 8192), ("none", 2048)])
def test_a_stretched_context_is_planned_for_and_no_more_than_that(plan, directory, tmp_path, kind, limit):
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    rope = {"rope_scaling": {"type": kind, "factor": 4.0}} if kind != "none" else {}
    (copy / "config.json").write_text(json.dumps(config | rope))
    for words in ((), ("--max-model-len", str(limit))):
        assert json.loads(plan(str(copy), "--nodes", "1", "--json", *words)[1])["max_model_len"] == limit
    code, out, err = plan(str(copy), "--nodes", "1", "--max-model-len", str(limit + 1))
    assert (code, out) == (2, "") and f"max_model_len {limit + 1}" in err and f"at most {limit}" in err
    (tmp_path / "config.toml").write_text(f"[model]\nmax_model_len = {limit + 1}\n")
    assert plan(str(copy), "--nodes", "1")[0] == 2


def test_more_nodes_than_layers_leave_spares(plan, tmp_path):
    small = write_llama(tmp_path / "small", LlamaShape(layers=1, hidden=32, intermediate=48, heads=2, kv_heads=1))
    code, out, _ = plan(str(small), "--nodes", "1,2")
    assert code == 0 and "n0" in out and "(spare)" in out.splitlines()[3]


def test_settings_count(plan, directory, tmp_path):
    (tmp_path / "mine.toml").write_text('[cluster]\nreserved_vram_gb = 0.25\n[model]\ndtype = "float16"\n')
    said = json.loads(plan(directory, "--nodes", "4", "--json", "--config", str(tmp_path / "mine.toml"))[1])
    assert said["dtype"] == "float16" and said["nodes"][0]["reserve_bytes"] == GB // 4


@pytest.mark.parametrize(
    ("words", "code", "names"),
    [
        (("/no/such/model", "--nodes", "1"), 7, "/no/such/model"),
        (("{model}", "--nodes", "1,x"), 2, "'x'"),
        (("{model}", "--nodes", "1,,2"), 2, "''"),
        (("{model}", "--nodes", "-3"), 2, "'-3'"),
        (("{model}", "--nodes", "nan"), 2, "'nan'"),
        (("{model}", "--nodes", "inf"), 2, "'inf'"),
        (("{model}", "--nodes", "1", "--dtype", "int8"), 2, "'int8'"),
        (("{model}", "--nodes", "1", "--max-model-len", "999999"), 2, "999999"),
        (("{model}",), 2, "--nodes"),
    ],
)
def test_other_words_are_refused(plan, directory, words, code, names):
    left, out, err = plan(*(word.replace("{model}", directory) for word in words))
    assert (left, out) == (code, "") and names in err


def test_a_broken_model_exits_7_and_names_the_file(plan, tmp_path):
    broken = write_llama(tmp_path / "broken", LlamaShape(layers=1, hidden=32, intermediate=48, heads=2, kv_heads=1))
    (broken / "ends.safetensors").write_bytes(b"\xff" * 64)
    code, _, err = plan(str(broken), "--nodes", "1")
    assert code == 7 and "ends.safetensors" in err


def test_what_is_said_of_the_model_is_no_part_of_the_answer(directory, tmp_path):
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))
    (copy / "generation_config.json").write_text('{"do_sample": true, "top_k": -1}')
    argv = [sys.executable, "-m", "hydra", "plan", str(copy), "--nodes", "1", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert json.loads(done.stdout)["fits"] and "top_k" in done.stderr and done.returncode == 0


def test_nothing_is_loaded(directory):
    source = (
        "import sys\nfrom hydra.cli.main import main\n"
        f"sys.argv = ['hydra', 'plan', {directory!r}, '--nodes', '1']\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "fits:" in done.stdout, done.stderr


def test_a_hub_model_is_planned_from_its_headers(plan, directory, monkeypatch, tmp_path):
    with fake_hub() as hub:
        hub.add("org/m", Path(directory))
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HYDRA_MODEL_CACHE_DIR", str(tmp_path / "cache"))
        code, out, _ = plan("org/m", "--nodes", "11,32,32", "--json")
        _, here, _ = plan(directory, "--nodes", "11,32,32", "--json")
        there, local = json.loads(out), json.loads(here)
        assert code == 0 and there.pop("model_path").startswith("org/m@") and local.pop("model_path") == directory
        assert there == local
        assert all(start == 0 and sent <= HEADER_GUESS_BYTES for _, start, sent in hub.sent), "headers only"
        assert plan("org/nothing", "--nodes", "1")[0] == 7
