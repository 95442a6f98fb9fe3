"""The workers of this machine before they exist: how many, each on which device, with which share of its memory."""

import os
import subprocess

import attrs
import psutil
import structlog

from hydra.complaint import Complaint
from hydra.processes.machine_facts import MachineFacts
from hydra.processes.preflight import check_devices

CPU_MEMORY_SHARE = 0.8  # of the RAM that is free at start, over all CPU workers of this machine

log = structlog.get_logger()


@attrs.frozen(kw_only=True)
class WorkerOptions:
    """One local worker: its device, its share of the memory, its threads."""

    node_id: str
    device: str
    memory_bytes: int
    threads: int


def local_workers(count: int | None, device: str, facts: MachineFacts) -> tuple[WorkerOptions, ...]:
    """The default is one per GPU, else two on the CPU. Devices that repeat share their memory.

    Raises Complaint: exit 2 for words that mean nothing, exit 4 for a device that cannot be used here.
    """
    devices = _devices(device, facts)
    n_workers = count if count is not None else (len(devices) if devices != ["cpu"] else 2)
    if device != "auto" and 0 < n_workers < len(devices):
        cause = f"{n_workers} {'workers have' if n_workers > 1 else 'worker has'} a device each"
        raise Complaint(f"--device {device} names {len(devices)} devices", cause, "name fewer, or more workers", 2)
    chosen = [devices[i % len(devices)] for i in range(n_workers)]
    cores = os.cpu_count() or 1
    desired: list[WorkerOptions] = []
    for index, name in enumerate(chosen):
        sharers = chosen.count(name)
        memory_bytes, threads = 0, 0
        if name == "cpu":
            memory_bytes = int(psutil.virtual_memory().available * CPU_MEMORY_SHARE / sharers)
            threads = max(1, cores // sharers)
        elif sharers > 1:
            memory_bytes = _gpu_memory(name) // sharers
        desired.append(WorkerOptions(node_id=f"w{index}", device=name, memory_bytes=memory_bytes, threads=threads))
    return tuple(desired)


def _devices(device: str, facts: MachineFacts) -> list[str]:
    if device != "auto":
        names = [name.strip() for name in device.split(",")]
        check_devices("--device", names, facts)
        return ["cuda:0" if name == "cuda" else name for name in names]
    if not facts.cuda_devices:
        return ["cpu"]
    if facts.built_for is not None and not facts.built_for:
        log.warning(
            "this machine has GPUs, but torch here is built without CUDA: the CPU computes",
            gpus=facts.cuda_devices,
            torch=facts.torch,
            fix="make up GPU=1",
        )
        return ["cpu"]
    return [f"cuda:{index}" for index in range(facts.cuda_devices)]


def _gpu_memory(device: str) -> int:
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", "-i", device.partition(":")[2]]
    answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20).stdout.strip()
    return int(answer) * (1 << 20) if answer.isdigit() else 0
