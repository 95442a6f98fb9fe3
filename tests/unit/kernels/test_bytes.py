"""A worker reads its own layers and nothing else: by its own count, and by the operating system's."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from hydra.bench.llama_dir import LlamaShape, write_llama

SHAPE = LlamaShape(layers=9, hidden=256, intermediate=704, heads=4, kv_heads=2, vocab=4096)
CUTS = (0, 1, 4, 6, 9)  # four slices, one of them a single layer
PART_MAX = 1.03
EMBEDDING = "model.embed_tokens.weight"
ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the cross-check needs /proc/self/io")


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def directory(request, tmp_path_factory):
    made = write_llama(tmp_path_factory.mktemp("bytes") / "model", SHAPE)
    if request.param:
        tie(made)
    return made


def tie(directory: Path) -> None:
    """The head goes: one that is stored would be used."""
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    file = directory / index["weight_map"].pop("lm_head.weight")
    save_file({name: tensor for name, tensor in load_file(file).items() if name != "lm_head.weight"}, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def measured(directory: Path, dtype: str, *cuts: int) -> list[tuple[int, int, int, int, list[str]]]:
    """Per slice: bytes by the reader's count, by the system's, of its tensors, of describing; and its tensors' names.

    The first load warms the process up and is left out.
    """
    argv = [sys.executable, "-m", "tests.unit.kernels.bytes_child", str(directory), dtype, *map(str, cuts)]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=True, cwd=ROOT).stdout
    return [json.loads(line) for line in said.splitlines()][1:]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.long)])
def test_four_workers_read_their_own_bytes_and_no_layer_twice(directory, dtype):
    slices = measured(directory, dtype, *CUTS)
    assert len(slices) == 4
    readers: Counter[str] = Counter()
    for counted, by_system, own, _, names in slices:
        assert counted == own
        assert own <= by_system <= PART_MAX * own, "the system saw other bytes than the reader counted"
        readers.update(names)
    tied = json.loads((directory / "config.json").read_text())["tie_word_embeddings"]
    twice = {EMBEDDING} if tied else set()  # both ends need it
    assert {name for name, times in readers.items() if times > 1} == twice


def test_describing_reads_next_to_nothing(directory):
    ((_, _, own, headers, _),) = measured(directory, "float32", 0, SHAPE.layers)
    assert 0 < headers < own / 50
