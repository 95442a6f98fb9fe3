"""What this machine could compute with, as far as it can be known in an instant and without importing torch.

Facts only: what follows from them is for `preflight` and `local_workers`. What nobody can tell is None, never a guess.
"""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import attrs
import structlog

NVIDIA_SMI_S = 10.0  # nvidia-smi wakes devices that sleep
_BUILT_FOR = re.compile(r"^(cuda|hip)\b[^=\n]*=\s*(.+)$", re.MULTILINE)

log = structlog.get_logger()


@attrs.frozen(kw_only=True)
class MachineFacts:
    """`torch` is its version, None where it is not installed."""

    torch: str | None
    built_for: frozenset[str] | None  # of "cuda", "hip"
    cuda_devices: int | None  # that a process of ours sees
    system: str  # as platform.system() has it
    machine: str

    @classmethod
    def look(cls, environ: Mapping[str, str] = os.environ) -> "MachineFacts":
        version, built_for = _torch()
        known = built_for is None or "hip" not in built_for  # how many devices ROCm shows, only torch could say
        return cls(
            torch=version,
            built_for=built_for,
            cuda_devices=visible(environ.get("CUDA_VISIBLE_DEVICES"), nvidia_devices()) if known else None,
            system=platform.system(),
            machine=platform.machine(),
        )


def _torch() -> tuple[str | None, frozenset[str] | None]:
    try:
        distribution = metadata.distribution("torch")
        text = Path(str(distribution.locate_file("torch/version.py"))).read_text()
    except metadata.PackageNotFoundError:
        return None, None
    except (OSError, ValueError):
        return distribution.version, None
    return distribution.version, built_for(text)


def built_for(version_py: str) -> frozenset[str] | None:
    """What torch/version.py says it was built for; None when it says nothing of the kind."""
    facts = {name: value.strip() for name, value in _BUILT_FOR.findall(version_py)}
    return frozenset(name for name, value in facts.items() if value != "None") if facts else None


def nvidia_devices() -> int:
    """As the driver lists them; where its tool is missing or silent, as they lie in /dev."""
    if shutil.which("nvidia-smi"):
        try:
            asked = ["nvidia-smi", "-L"]
            listed = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=NVIDIA_SMI_S)
            return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())  # none where it fails
        except (OSError, subprocess.TimeoutExpired) as error:
            log.warning("nvidia-smi does not answer; counting the devices in /dev", reason=str(error))
    return len([path for path in Path("/dev").glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()])


def visible(setting: str | None, n_devices: int) -> int:
    """How many of them CUDA_VISIBLE_DEVICES leaves: as CUDA reads it, up to the first entry that is no device."""
    if setting is None:
        return n_devices
    count = 0
    for entry in setting.split(","):
        number = entry.strip()
        named = number.startswith(("GPU-", "MIG-")) and n_devices > 0
        if not named and not (number.isdigit() and int(number) < n_devices):
            break
        count += 1
    return count
