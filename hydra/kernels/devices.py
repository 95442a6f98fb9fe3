"""What a device is called, what it can do and how much memory it has: the only place that asks the machine."""

import os
import platform
import shutil
from functools import cache

import psutil
import torch

from hydra.protocol.model.dtype import Dtype


def native_dtypes(device: torch.device) -> tuple[Dtype, ...]:
    """The dtypes a device is at home in. A CPU computes the half ones too, but only for those who insist."""
    if device.type == "cpu":
        return ("float32",)
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return ("float32", "bfloat16", "float16")
    return ("float32", "float16")


def runs_triton(device: torch.device) -> bool:
    """Whether kernels of our own can be built for a device here, one token per row among them."""
    return _builds_kernels(device, (8, 0))


def decodes_in_triton(device: torch.device) -> bool:
    """Whether products with encoded matrices can be: they make do without units that multiply tiles."""
    return _builds_kernels(device, (7, 5))


def multiplies_tiles(device: torch.device) -> bool:
    """Whether Triton has use for a device's units that multiply tiles of 16-bit numbers."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def _builds_kernels(device: torch.device, capability: tuple[int, int]) -> bool:
    """Triton needs a C compiler for what launches them."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < capability:
        return False
    if not (os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")):
        return False
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def processors(device: torch.device) -> int:
    """Of a CUDA device: its multiprocessors."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.machine()


def memory_bytes(device: torch.device) -> tuple[int, int]:
    """(total, free now)."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return total, free + reusable
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return total, total - torch.mps.driver_allocated_memory()
    memory = psutil.virtual_memory()
    return memory.total, memory.available


def peak_bytes(device: torch.device) -> int:
    """The most that torch's allocator ever gave out at once on a CUDA device."""
    return torch.cuda.max_memory_allocated(device)


def finish(device: torch.device) -> None:
    """Waits until everything enqueued so far is done: streams do not wait for each other by themselves."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def give_back(device: torch.device) -> None:
    """Returns freed memory to the machine, once no step can still be using it."""
    finish(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
