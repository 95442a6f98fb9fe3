"""What a worker process has taken from files, by the operating system's count, and what it should have."""

from collections.abc import Mapping
from pathlib import Path

from hydra.protocol.model.model_spec import Described
from hydra.store.models.library import LocalLibrary
from tests.e2e.cluster import RunningCluster

PART_MAX = 1.03


def read_bytes(pid: int) -> int:
    """Every byte the process has taken out of files and pipes."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["rchar"])


def stages(cluster: RunningCluster, model_id: str) -> dict[str, tuple[int, int]]:
    return {
        node["node_id"]: (stage["first_layer"], stage["end_layer"])
        for node in cluster.status()["nodes"]
        for stage in node["stages"]
        if stage["model_id"] == model_id
    }


def check_shares(taken: Mapping[str, int], slices: Mapping[str, tuple[int, int]], described: Described) -> None:
    """Each its own layers, all of them, and next to nothing else."""
    assert sorted(slices.values())[0][0] == 0 and slices.keys() == taken.keys()
    for name, (first, end) in slices.items():
        own = sum(tensor.length for tensor in LocalLibrary().slice_ranges(described, first, end))
        assert own <= taken[name] <= PART_MAX * own, f"{name} with layers {first}-{end - 1}"
