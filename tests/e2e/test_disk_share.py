"""Who reads what from disk, by the operating system's own count."""

from pathlib import Path

from hydra.bench.llama_dir import LlamaShape, write_llama
from tests.e2e.cluster import running_cluster

SHAPE = LlamaShape(layers=6, hidden=512, intermediate=1408, heads=8, kv_heads=4, vocab=4096)
SLACK_BYTES = 300_000  # pipes and configuration files count as well


def bytes_read(pid: int) -> int:
    """All that a process has read by system calls, from the page cache or not; mapped files are not in it."""
    counts = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(counts["rchar"])


def test_each_of_four_workers_reads_its_own_share(tmp_path: Path) -> None:
    directory = write_llama(tmp_path / "model", SHAPE)
    weights = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    assert weights > 80_000_000
    with running_cluster(tmp_path, directory, workers=4) as cluster:
        cluster.processes.start_worker("spare")
        cluster.wait_until("the spare has joined", 30, lambda: len(cluster.status()["nodes"]) == 5)
        idle = bytes_read(cluster.pid_of_node("spare"))  # what a worker reads that holds no layer
        layers = cluster.layers()
        assert len(layers) == 4 and "spare" not in layers
        read = {name: bytes_read(cluster.pid_of_node(name)) - idle for name in layers}
        for name, held in layers.items():
            ends = SHAPE.head_bytes * ((0 in held) + (SHAPE.layers - 1 in held))
            share = len(held) * SHAPE.layer_bytes + ends
            assert share < 0.5 * weights, "a share is a small part of the file"
            assert abs(read[name] - share) < SLACK_BYTES, f"{name} holds {held}, {share} bytes, and has read {read}"
        assert abs(sum(read.values()) - weights) < 4 * SLACK_BYTES, "nothing was read twice"
