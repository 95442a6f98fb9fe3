"""Models whose matrices stay encoded, on real processes: a killed worker changes no word of them either."""

import os
import signal
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import quants
from transformers import LlamaConfig

from tests.e2e.cluster import RunningCluster, running_cluster
from tests.e2e.served import Served, all_at_once, complete, save_model, wait_whole
from tests.unit.kernels.gguf_models import ARCHITECTURES, converted, saved_tensors, write_metadata, write_tokens

pytestmark = pytest.mark.long


def write_q8_0(path: Path, directory: Path) -> None:
    """The model in `directory` as one file, its matrices in blocks of 8 bits."""
    config = LlamaConfig.from_pretrained(directory)
    out = gguf.GGUFWriter(path, ARCHITECTURES["llama"])
    write_metadata(out, config, "llama")
    write_tokens(out, config.vocab_size)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, array in converted(saved_tensors(directory), config, "llama"):
        whole = np.ascontiguousarray(array)
        if whole.ndim == 2 and whole.shape[1] % 32 == 0:
            out.add_tensor(name, quants.quantize(whole, kind), raw_dtype=kind)
        else:
            out.add_tensor(name, whole)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def check_that_a_death_changes_nothing(cluster: RunningCluster, served: Served) -> None:
    """The answers of an undisturbed cluster are the reference: that they are right is shown elsewhere."""
    asked = Served(served.directory, served.prompts, [complete(cluster, p, stream=False) for p in served.prompts])
    assert all(asked.answers)
    for victim in ("w0", "w1"):
        wait_whole(cluster, 2)
        kill = partial(os.kill, cluster.pid_of_node(victim), signal.SIGKILL)
        assert all_at_once(cluster, asked, during=kill) == asked.answers
        assert cluster.status()["losses"][-1]["node_id"] == victim


def test_a_gguf_file(untied: Served, tmp_path: Path) -> None:
    save_model(tmp_path / "model", tied=False)
    path = tmp_path / "model-Q8_0.gguf"
    write_q8_0(path, tmp_path / "model")
    with running_cluster(tmp_path, path, workers=2) as cluster:
        check_that_a_death_changes_nothing(cluster, untied)


def test_a_model_that_is_quantised_while_it_is_loaded(untied: Served, tmp_path: Path) -> None:
    with running_cluster(tmp_path, untied.directory, workers=2, more=("--quantize", "int4")) as cluster:
        assert cluster.status()["models"][0]["quantize"] == "int4"
        check_that_a_death_changes_nothing(cluster, untied)
