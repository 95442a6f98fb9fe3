"""Which build of torch `make` installs, how large it is, and where it comes from; said before anything is fetched.

    python install/torch_wheel.py [--gpu]        run by the Python of the environment that torch is for

Plain `pip install torch` on Linux brings 2.7 GB of CUDA. Where no NVIDIA driver shows itself, and nobody asked for the
CUDA build, PyTorch's own CPU index is used if it answers within 5 s. Standard library only: nothing is installed yet.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
ANSWER_S = 5.0
CPU_SIZE, CUDA_SIZE, MAC_SIZE = "about 0.2 GB", "about 2.7 GB", "about 0.1 GB"


@dataclass(frozen=True)
class Facts:
    """`installed`: the version of torch that is there already, or None."""

    system: str
    has_driver: bool
    wants_gpu: bool
    installed: str | None
    own_index: bool  # this machine's pip is told to look nowhere but at places of its own


@dataclass(frozen=True)
class Choice:
    """`words` for a person; `argv` after `pip install`, empty where nothing is to be done."""

    words: str
    argv: tuple[str, ...]
    or_else: "Choice | None" = None  # where that fails


def choose(version: str, facts: Facts, cpu_index_answers: Callable[[], bool]) -> Choice:
    """`cpu_index_answers` is asked only where it matters."""
    pinned = f"torch=={version}"
    plain = ("-c", str(CONSTRAINTS), pinned)
    wants_cuda = facts.system == "Linux" and (facts.has_driver or facts.wants_gpu)
    have = facts.installed or ""
    if have.partition("+")[0] == version and not (wants_cuda and have.endswith("+cpu")):
        return Choice(f"torch {have} is here already", ())
    if facts.system != "Linux":
        return Choice(f"torch {version} for {facts.system}, {MAC_SIZE}", plain)
    if wants_cuda:
        why = "GPU=1" if facts.wants_gpu else "an NVIDIA driver is here; `make up GPU=0` takes the CPU build"
        again = ("--force-reinstall",) if have else ()  # 2.13.0+cpu counts as 2.13.0
        return Choice(f"torch {version} with CUDA, {CUDA_SIZE} ({why})", (*again, *plain))
    index = f"torch {version} from the package index of this machine: {CUDA_SIZE} if that is the build with CUDA"
    default = Choice(index, plain)
    if facts.own_index:
        return default
    if not cpu_index_answers():
        return Choice(f"{index} ({CPU_INDEX} does not answer)", plain)
    argv = ("--no-deps", "--index-url", CPU_INDEX, pinned)  # what it needs comes from the usual index afterwards
    return Choice(f"torch {version} for the CPU, {CPU_SIZE}, from {CPU_INDEX}", argv, default)


def pinned_version(constraints: str) -> str:
    found = re.search(r"^torch==(\S+)$", constraints, re.MULTILINE)
    if found is None:
        raise SystemExit(f"{CONSTRAINTS} does not pin torch")
    return found[1]


def answers(url: str, within_s: float = ANSWER_S) -> bool:
    """Whether somebody hands out the page in time, the name's resolution counted."""
    answered: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=within_s) as page:
                answered.append(page.status == 200)
        except (OSError, ValueError):  # which includes urllib's own errors
            answered.append(False)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(within_s)
    return answered == [True]


def look(gpu: str) -> Facts:
    """`gpu`: "1" asks for CUDA, "0" for the CPU, anything else leaves it to the driver."""
    try:
        installed = metadata.version("torch")
    except metadata.PackageNotFoundError:
        installed = None
    driver = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists()
    return Facts(
        system=platform.system(),
        has_driver=driver and gpu != "0",
        wants_gpu=gpu == "1",
        installed=installed,
        own_index=bool(os.environ.get("PIP_NO_INDEX")),
    )


def install(choice: Choice, pip: Callable[[Sequence[str]], int], say: Callable[[str], None]) -> int:
    """The exit status of the last pip that ran."""
    say(choice.words)
    if not choice.argv:
        return 0
    status = pip(choice.argv)
    if status and choice.or_else is not None:
        say("that failed")
        return install(choice.or_else, pip, say)
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description="Installs torch into the environment of this Python.")
    parser.add_argument("--gpu", default="", help="1: with CUDA; 0: for the CPU; left out: as the driver says")
    gpu = parser.parse_args().gpu
    choice = choose(pinned_version(CONSTRAINTS.read_text()), look(gpu), lambda: answers(f"{CPU_INDEX}/torch/"))

    def pip(argv: Sequence[str]) -> int:
        quiet = () if sys.stdout.isatty() else ("-q",)  # a person sees how far it is
        return subprocess.run([sys.executable, "-m", "pip", "install", *quiet, *argv], check=False).returncode

    def say(line: str) -> None:
        sys.stdout.write(f"  {line}\n")
        sys.stdout.flush()

    return install(choice, pip, say)


if __name__ == "__main__":
    sys.exit(main())
