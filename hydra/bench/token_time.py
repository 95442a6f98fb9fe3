"""P1: what the whole way costs one reader. And R: what a worker takes of the memory.

On the CPU in float32, on any other device in bfloat16; the bare loop runs on the first of the devices. R is the
resident memory of the same processes on the CPU, and on a CUDA device what torch's allocator held at most in a process
of its own.
"""

import statistics
from pathlib import Path

from hydra.bench.budget import Measured, median_ratio, spread
from hydra.bench.child import child
from hydra.bench.llama_dir import LlamaShape, write_llama
from hydra.bench.served import Served, served

BARE_MS = (15.0, 25.0)  # the bare loop's time per token, by choice of the number of layers
PROMPT, STREAM_TOKENS = 64, 48
CONTEXT_TOKENS = 256
ALLOWANCE_BYTES = 300_000_000


def layers_for(layer_ms: float, ends_ms: float) -> int:
    """How many layers bring the bare loop into the middle of its range; at least one per stage."""
    middle = sum(BARE_MS) / 2
    return max(2, round((middle - ends_ms) / layer_ms))


def probe_layer_ms(scratch: Path, first_device: str) -> tuple[float, float]:
    """(milliseconds per layer, of embedding and head), from two small models."""
    took: dict[int, float] = {}
    for layers in (2, 6):
        directory = write_llama(scratch / f"probe-{layers}", LlamaShape(layers=layers), bfloat16=first_device != "cpu")
        with child("hydra.bench.bare_loop", directory, 0, layers, 1, CONTEXT_TOKENS, first_device) as bare:
            bare.ask({"from": PROMPT, "steps": STREAM_TOKENS})
            runs = [bare.ask({"from": PROMPT, "steps": STREAM_TOKENS}) for _ in range(3)]
        took[layers] = 1000 * min(run["seconds"] / run["steps"] for run in runs)
    layer_ms = max(0.05, (took[6] - took[2]) / 4)
    return layer_ms, max(0.0, took[2] - 2 * layer_ms)


def measure_token_time(scratch: Path, *, rounds: int, device: str) -> dict[str, Measured]:
    """{"P1": ..., "R": ...}."""
    first_device = device.partition(",")[0]
    shape = LlamaShape(layers=layers_for(*probe_layer_ms(scratch, first_device)))
    directory = write_llama(scratch / "llama", shape, bfloat16=first_device != "cpu")
    pairs: list[tuple[float, float]] = []
    prompt = [1 + i % 200 for i in range(PROMPT)]
    with (
        child("hydra.bench.bare_loop", directory, 0, shape.layers, 1, CONTEXT_TOKENS, first_device) as bare,
        served(directory, scratch, workers=2, device=device) as cluster,
    ):
        for number in range(rounds + 1):
            ours_s = _per_token_s(cluster, prompt)
            ran = bare.ask({"from": PROMPT, "steps": STREAM_TOKENS})
            if number:  # the first round warms both up
                pairs.append((ours_s, ran["seconds"] / ran["steps"]))
        found = {"P1": _token_time(pairs, shape)}
        if device == "cpu":
            found["R"] = _memory(cluster, shape, directory)
    if first_device.startswith("cuda"):
        with child("hydra.bench.peak_child", directory, first_device, PROMPT, STREAM_TOKENS) as measuring:
            found["R"] = _device_memory(measuring.hear())
    return found


def _per_token_s(cluster: Served, prompt: list[int]) -> float:
    arrived = cluster.stream_s(prompt, STREAM_TOKENS)
    return (arrived[-1] - arrived[0]) / (len(arrived) - 1)


def _token_time(pairs: list[tuple[float, float]], shape: LlamaShape) -> Measured:
    detail = {
        "layers": shape.layers,
        "bare_ms": round(1000 * statistics.median(bare for _, bare in pairs), 2),
        "ours_ms": round(1000 * statistics.median(ours for ours, _ in pairs), 2),
        "rounds": spread(pairs),
    }
    return Measured(ratio=median_ratio(pairs), detail=detail)


def _memory(cluster: Served, shape: LlamaShape, directory: Path) -> Measured:
    """The worst worker. Peak resident memory as the operating system counted it, model file pages included."""
    worst, detail = 0.0, {}
    for node in cluster.status()["nodes"]:
        stage = node["stages"][0]
        n_layers = stage["end_layer"] - stage["first_layer"]
        weights = n_layers * shape.layer_bytes
        weights += shape.head_bytes * ((stage["first_layer"] == 0) + (stage["end_layer"] == shape.layers))
        kv = (PROMPT + STREAM_TOKENS) * shape.kv_token_bytes * n_layers // shape.layers
        peak = process_peak_bytes(node["pid"])
        ratio = peak / (weights + kv + ALLOWANCE_BYTES)
        detail[node["node_id"]] = {
            "peak_bytes": peak,
            "weight_bytes": weights,
            "kv_bytes": kv,
            "ratio": round(ratio, 3),
        }
        worst = max(worst, ratio)
    return Measured(ratio=worst, detail=detail)


def _device_memory(by_name: dict[str, int]) -> Measured:
    """Of the first half of the layers. The allocator counts neither the context nor the libraries' own memory."""
    return Measured(
        ratio=by_name["peak_bytes"] / (by_name["weight_bytes"] + by_name["kv_bytes"] + ALLOWANCE_BYTES), detail=by_name
    )


def process_peak_bytes(pid: int) -> int:
    """VmHWM of a process. Raises OSError where there is no /proc."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmHWM")
