"""What cannot work is known before a child is started: devices, directories, models, each with its exit code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hydra.complaint import Complaint
from hydra.processes.local_workers import local_workers
from hydra.processes.machine_facts import MachineFacts, built_for, visible
from hydra.processes.preflight import check_devices, check_model, check_writable
from hydra.store.models.demo_model import ensure_demo_model

ROOT = Path(__file__).parents[3]
CPU_ONLY = MachineFacts(
    torch="2.13.0+cpu", built_for=frozenset(), cuda_devices=0, system="Linux", machine="x86_64"
)  # fmt: skip
TWO_GPUS = MachineFacts(
    torch="2.13.0", built_for=frozenset({"cuda"}), cuda_devices=2, system="Linux", machine="x86_64"
)  # fmt: skip


def but(facts: MachineFacts, **other) -> MachineFacts:
    return MachineFacts(**{name: other.get(name, getattr(facts, name)) for name in facts.__slots__ if name[0] != "_"})


@pytest.mark.parametrize(
    "name", ["gpu", "cuda:x", "cuda:", "cuda:-1", "cuda:01", "CUDA:0", "cpu:0", "", "auto", "cuda:٣"]
)
def test_what_is_no_device_is_a_word_that_means_nothing(name):
    with pytest.raises(Complaint) as caught:
        check_devices("--device", ["cpu", name], TWO_GPUS)
    assert caught.value.exit_code == 2 and repr(name) in caught.value.what


@pytest.mark.parametrize(
    ("name", "facts", "cause"),
    [
        ("cuda:0", CPU_ONLY, "2.13.0+cpu of this environment is built without CUDA"),
        ("cuda", but(CPU_ONLY, cuda_devices=4), "built without CUDA"),
        ("cuda:0", but(TWO_GPUS, cuda_devices=0), "no NVIDIA driver shows a GPU"),
        ("cuda:7", TWO_GPUS, "cuda:0, cuda:1"),
        ("cuda:2", TWO_GPUS, "cuda:0, cuda:1"),
        ("mps", TWO_GPUS, "Apple silicon"),
        ("mps", but(TWO_GPUS, system="Darwin"), "Apple silicon"),
        ("cpu", but(CPU_ONLY, torch=None), "torch is not installed"),
    ],
)
def test_what_this_machine_does_not_have_is_its_environment(name, facts, cause):
    with pytest.raises(Complaint) as caught:
        check_devices("--device", [name], facts)
    assert caught.value.exit_code == 4 and cause in caught.value.cause and caught.value.fix


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("cpu", CPU_ONLY),
        ("cuda:1", TWO_GPUS),
        ("cuda", TWO_GPUS),
        ("mps", but(CPU_ONLY, system="Darwin", machine="arm64")),
        ("cuda:5", but(TWO_GPUS, cuda_devices=None)),  # ROCm: nobody can tell
        ("cuda:0", but(TWO_GPUS, built_for=None)),
    ],
)
def test_what_may_work_is_let_through(name, facts):
    check_devices("--device", [name], facts)


@pytest.mark.parametrize(
    ("setting", "n_devices", "seen"),
    [
        (None, 3, 3),
        ("", 3, 0),
        ("-1", 3, 0),
        ("1", 3, 1),
        ("2,0", 3, 2),
        ("0,3,1", 3, 1),
        ("GPU-ab,MIG-cd", 3, 2),
        ("NoDevFiles", 3, 0),
        ("GPU-ab", 0, 0),
    ],
)
def test_hidden_devices_are_not_counted(setting, n_devices, seen):
    assert visible(setting, n_devices) == seen


def test_torch_says_what_it_was_built_for():
    text = "__version__ = '2.13.0'\ncuda: Optional[str] = {}\nhip: Optional[str] = {}\n"
    assert built_for(text.format("None", "None")) == frozenset()
    assert built_for(text.format("'13.0'", "None")) == {"cuda"}
    assert built_for(text.format("None", "'7.0'")) == {"hip"}
    assert built_for("__version__ = '1'") is None


def test_this_machine_is_seen_as_torch_sees_it():
    facts = MachineFacts.look()
    assert facts.torch == torch.__version__ and facts.built_for is not None
    assert ("cuda" in facts.built_for) == (torch.version.cuda is not None)
    if facts.built_for == {"cuda"}:
        assert facts.cuda_devices == torch.cuda.device_count()


def test_auto_takes_only_what_torch_can_use():
    assert [desired.device for desired in local_workers(None, "auto", TWO_GPUS)] == ["cuda:0", "cuda:1"]
    assert [desired.device for desired in local_workers(None, "auto", but(CPU_ONLY, cuda_devices=2))] == ["cpu", "cpu"]
    assert [desired.device for desired in local_workers(None, "cuda", TWO_GPUS)] == ["cuda:0"]


def test_a_device_that_no_worker_would_use_is_refused():
    with pytest.raises(Complaint, match="names 2 devices") as caught:
        local_workers(1, "cuda:0,cuda:1", TWO_GPUS)
    assert caught.value.exit_code == 2


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written_to_is_told(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(Complaint, match="cannot be written to"):
        check_writable(tmp_path / "closed" / "state", "--state-dir")


def test_a_directory_that_cannot_be_one_or_is_full_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(Complaint) as caught:
        check_writable(tmp_path / "file" / "below", "--state-dir")
    assert caught.value.exit_code == 4 and "--state-dir" in caught.value.fix
    check_writable(tmp_path / "new" / "one", "--state-dir")
    assert list((tmp_path / "new" / "one").iterdir()) == []

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hydra.processes.preflight.os.fsync", full)
    with pytest.raises(Complaint) as caught:
        check_writable(tmp_path / "new" / "one", "--state-dir")
    assert "No space left" in caught.value.cause


def damaged(tmp_path: Path, how: str) -> Path:
    model = Path(shutil.copytree(ensure_demo_model(tmp_path), tmp_path / "model"))
    match how:
        case "no config":
            (model / "config.json").unlink()
        case "no tokenizer":
            (model / "tokenizer.json").unlink()
        case "another family":
            config = json.loads((model / "config.json").read_text())
            (model / "config.json").write_text(json.dumps({**config, "architectures": ["MambaForCausalLM"]}))
        case "cut weights":
            weights = next(model.glob("*.safetensors"))
            weights.write_bytes(weights.read_bytes()[:-100])
    return model


@pytest.mark.parametrize("how", ["no config", "no tokenizer", "another family", "cut weights"])
def test_a_model_that_could_not_be_served_is_told_before_anybody_is_started(tmp_path, how):
    with pytest.raises(Complaint) as caught:
        check_model(str(damaged(tmp_path, how)), 0, tmp_path)
    assert caught.value.exit_code == 7


def test_more_positions_than_the_model_has_are_a_usage_error(tmp_path):
    model = str(ensure_demo_model(tmp_path))
    check_model(model, 2048, tmp_path)
    check_model("org/name", 10**6, tmp_path)  # the coordinator asks the Hub
    with pytest.raises(Complaint, match="max_model_len 4096") as caught:
        check_model(model, 4096, tmp_path)
    assert caught.value.exit_code == 2


def test_a_hopeless_start_ends_in_three_lines_and_starts_nobody(tmp_path):
    """Through the front door, once: no child, no traceback, no torch."""
    source = (
        "import sys\nfrom hydra.cli.main import main\ntry:\n    main()\n"
        "finally:\n    assert not {'torch', 'zmq'} & set(sys.modules)\n"
    )
    argv = [sys.executable, "-c", source, "up", "--device", "cpu,gpu", "--state-dir", str(tmp_path / "state")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "state").exists()
    assert [line[:6] for line in done.stderr.splitlines()] == ["error:", "cause:", "fix:  "]
