"""Worker processes of a real cluster take their own layers from the disk, by the operating system's count."""

from pathlib import Path

import httpx2
import pytest

from hydra.bench.llama_dir import LlamaShape, write_llama
from hydra.store.models.library import LocalLibrary
from tests.audit import hydra_audit
from tests.e2e.cluster import RunningCluster, running_cluster
from tests.e2e.own_bytes import check_shares, read_bytes, stages

SHAPE = LlamaShape(layers=12, hidden=512, intermediate=1408, heads=8, kv_heads=2, vocab=4096)

pytestmark = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="bytes are counted in /proc")


@pytest.mark.long
def test_four_workers_read_a_quarter_each(tmp_path: Path) -> None:
    directory = write_llama(tmp_path / "model", SHAPE)
    with running_cluster(tmp_path, workers=4) as cluster:  # serves the demo model: everything is warm
        pids = {node["node_id"]: node["pid"] for node in cluster.status()["nodes"]}
        before = {name: read_bytes(pid) for name, pid in pids.items()}
        asked = {"model_path": str(directory), "model_id": "second"}
        assert httpx2.post(f"{cluster.url}/api/models/load", json=asked, timeout=90.0).is_success
        taken = {name: read_bytes(pid) - before[name] for name, pid in pids.items()}
        slices = stages(cluster, "second")
        check_ears(cluster)
        for pid in pids.values():
            assert "glibc.malloc.hugetlb=1" in Path(f"/proc/{pid}/environ").read_text()
    assert len(slices) == 4
    check_shares(taken, slices, LocalLibrary().describe(str(directory)))


def check_ears(cluster: RunningCluster) -> None:
    """Whatever these processes execute, the audit hook hears it."""
    folder = str(Path(hydra_audit.__file__).parent)
    for pid in cluster.family():
        assert folder in Path(f"/proc/{pid}/environ").read_text()
