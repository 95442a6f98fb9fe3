"""RQ: what a worker of a model of 4 bits takes of the memory at most, its loading included."""

from pathlib import Path

from hydra.bench.budget import Measured
from hydra.bench.llama_dir import LlamaShape, write_llama
from hydra.bench.served import served
from hydra.bench.token_time import ALLOWANCE_BYTES, PROMPT, STREAM_TOKENS, process_peak_bytes
from hydra.protocol.model.quantised import quantised
from hydra.store.models.library import LocalLibrary

SHAPE = LlamaShape(layers=16, hidden=2048, intermediate=5632, heads=16, kv_heads=4, vocab=8192)  # 0.8 B numbers


def measure_quantised_memory(scratch: Path) -> Measured:
    """The worst worker of two; the files are bfloat16, and four times as large as what is kept."""
    directory = write_llama(scratch / "quantised-memory", SHAPE, bfloat16=True)
    spec = quantised(LocalLibrary().describe(str(directory)), "int4").spec
    detail: dict[str, object] = {}
    worst = 0.0
    with served(
        directory, scratch, workers=2, device="cpu", more=("--quantize", "int4", "--dtype", "float32")
    ) as cluster:
        cluster.stream_s([1 + i % 200 for i in range(PROMPT)], STREAM_TOKENS)
        status = cluster.status()
        if status["losses"] or not all(node["stages"] for node in status["nodes"]):
            raise RuntimeError(f"two workers were to compute: {status['nodes']}, lost: {status['losses']}")
        for node in status["nodes"]:
            first, end = node["stages"][0]["first_layer"], node["stages"][0]["end_layer"]
            weight_bytes = spec.slice_bytes(first, end, "float32")
            kv_bytes = (PROMPT + STREAM_TOKENS) * spec.cache_size(first, end, "float32").token_bytes
            peak_bytes = process_peak_bytes(node["pid"])
            ratio = peak_bytes / (weight_bytes + kv_bytes + ALLOWANCE_BYTES)
            worst = max(worst, ratio)
            detail[node["node_id"]] = {
                "peak_bytes": peak_bytes,
                "weight_bytes": weight_bytes,
                "kv_bytes": kv_bytes,
                "ratio": round(ratio, 3),
            }
    return Measured(ratio=worst, detail=detail)
