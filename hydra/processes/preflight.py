"""What can be known before the first child is started, so that what cannot work ends in three lines and not in a loop.

Each check raises Complaint: 2 for words that mean nothing, 4 for this machine, 7 for the model. Nothing here imports
torch, and nothing is changed but that directories are made.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import structlog

from hydra.complaint import Complaint, exit_code_of
from hydra.processes.machine_facts import MachineFacts
from hydra.protocol.refusal import RefusalError

ROOM_BYTES = 1_000_000_000  # less than this free is worth a word
TRY_BYTES = 4096
_DEVICE = re.compile(r"cpu|mps|cuda(?::(0|[1-9]\d{0,3}))?", re.ASCII)

log = structlog.get_logger()


def check_devices(option: str, names: Sequence[str], facts: MachineFacts) -> None:
    """Each of `names` is a device that this machine has and that torch here was built for."""
    for name in names:
        parts = _DEVICE.fullmatch(name)
        if parts is None:
            fix = f"for example {option} auto" if name == "auto" else f"for example {option} cpu, or {option} cuda:0"
            cause = "auto stands alone" if name == "auto" else "devices are called cpu, mps or cuda:N"
            raise Complaint(f"{option}: {name!r} is no device", cause, fix, 2)
        if facts.torch is None:
            cause, fix = "torch is not installed in this environment", "install it: make up does"
            raise Complaint(f"{option}: {name} cannot be used", cause, fix, 4)
        if name == "mps" and (facts.system, facts.machine) != ("Darwin", "arm64"):
            cause = f"it is the GPU of a Mac with Apple silicon, and this is {facts.system} on {facts.machine}"
            raise Complaint(f"{option}: mps cannot be used", cause, f"for example {option} cpu", 4)
        if name.startswith("cuda"):
            _check_cuda(option, name, int(parts[1] or 0), facts)


def _check_cuda(option: str, name: str, index: int, facts: MachineFacts) -> None:
    if facts.built_for is not None and not facts.built_for:
        cause = f"torch {facts.torch} of this environment is built without CUDA"
        fix = f"install a torch with CUDA (`make up GPU=1` does), or use {option} cpu"
        raise Complaint(f"{option}: {name} cannot be used", cause, fix, 4)
    if facts.cuda_devices is None or index < facts.cuda_devices:
        return
    if facts.cuda_devices == 0:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        cause = "no NVIDIA driver shows a GPU here" + (
            f" (CUDA_VISIBLE_DEVICES={hidden})" if hidden is not None else ""
        )
        raise Complaint(f"{option}: {name} cannot be used", cause, f"mend the driver, or use {option} cpu", 4)
    there = ", ".join(f"cuda:{number}" for number in range(facts.cuda_devices))
    raise Complaint(f"{option}: there is no {name}", f"this machine has {there}", "choose one of them", 4)


def check_writable(directory: Path, setting: str) -> None:
    """A file can be written there: tried, because permissions, full disks and read-only mounts tell in no other way."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory, prefix=".hydra-try-") as file:
            file.write(b"\0" * TRY_BYTES)
            file.flush()
            os.fsync(file.fileno())
        free_bytes = shutil.disk_usage(directory).free
    except OSError as error:
        fix = f"make room or give permission there, or choose another with {setting}"
        raise Complaint(f"{directory} cannot be written to", error.strerror or str(error), fix, 4) from error
    if free_bytes < ROOM_BYTES:
        log.warning("little room is left on this disk", directory=str(directory), free_mb=free_bytes // 1_000_000)


def check_model(model: str, max_model_len: int, cache_dir: Path) -> None:
    """A directory or a GGUF file is described from its config and headers. A model of the Hub is for the coordinator to
    ask about.
    """
    from hydra.actors.planning.split import check_max_model_len
    from hydra.store.files.directory import locate
    from hydra.store.models.gguf_model import describe_path
    from hydra.store.models.model_ref import HubRef, parse_ref

    try:
        if isinstance(parse_ref(model), HubRef):
            return
        # whether a second head is the first once more takes time to find out
        described = describe_path(model, cache_dir, tied=True)
        if locate(Path(described.folder), "tokenizer.json") is None:
            cause = f"{model} has no tokenizer.json"
            fix = "put the tokenizer.json and tokenizer_config.json that belong to this model beside its weights"
            raise Complaint("requests to this model could not be answered", cause, fix, 7)
        check_max_model_len(described.spec, max_model_len)
    except RefusalError as error:
        refusal, fix = error.refusal, "mend what is said above, or choose another"
        exit_code = exit_code_of(refusal.code, refusal.param)
        raise Complaint(refusal.message, "the model cannot be served", fix, exit_code) from error
