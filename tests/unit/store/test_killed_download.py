"""A download killed at twenty random points: what is started again fetches no byte more than once more, and the
weights loaded from it are the published ones, byte for byte.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from hydra.kernels.weights.part_reader import fetch_parts
from hydra.protocol.model.layout import Part, slice_parts
from hydra.protocol.model.model_spec import TensorRange, WeightRole
from hydra.store.cache import range_cache, range_fetch
from hydra.store.models.library import LocalLibrary
from tests import range_download as plan
from tests.fake_hub import fake_hub

ROOT = Path(__file__).parents[3]
KILLS = 20


@attrs.frozen
class Published:
    """A model of several files, of which a slice is wanted."""

    directory: Path
    errand: plan.Errand
    content: dict[str, bytes]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Published:
    directory = tmp_path_factory.mktemp("published")
    torch.manual_seed(3)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 101}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(directory, max_shard_size="3MB")
    content = {path.name: path.read_bytes() for path in directory.glob("*.safetensors")}
    assert len(content) > 2
    return Published(directory, plan.errand(directory), content)


def loaded(published: Published, folder: Path) -> dict[tuple[Part, WeightRole], torch.Tensor]:
    """The slice as a worker loads it from `folder`."""
    spec = LocalLibrary().describe(str(published.directory)).spec
    parts, read_bytes = fetch_parts(
        spec,
        slice_parts(spec, *plan.SLICE),
        published.errand.wanted,
        folder,
        torch.float32,
        torch.device("cpu"),
        lambda done, total: None,
    )
    assert read_bytes == published.errand.wanted_bytes
    return {(part, role): tensor for part, tensors in parts.items() for role, tensor in tensors.items()}


def spans_of(wanted: tuple[TensorRange, ...], name: str) -> list[slice]:
    return [slice(each.offset, each.offset + each.length) for each in wanted if each.file == name]


@attrs.define(eq=False)
class Killer:
    """Ends a process once so many bytes have gone out to it, in the middle of whatever it does then."""

    threshold: int
    sent: int = 0
    pid: int = 0
    lock: threading.Lock = attrs.field(factory=threading.Lock)

    def went_out(self, n_bytes: int) -> None:
        with self.lock:
            self.sent += n_bytes
            if self.pid and self.sent >= self.threshold:
                os.kill(self.pid, signal.SIGKILL)
                self.pid = 0


def killed(published: Published, cache: Path, threshold: int) -> dict[str, NDArray[np.int64]]:
    """Downloads until so many bytes went out. Returns for each file how often each of its bytes did."""
    killer = Killer(threshold)
    with fake_hub() as hub:
        hub.repos[plan.REPO] = published.content
        hub.went_out = killer.went_out
        argv = [sys.executable, "-m", "tests.range_download", str(published.directory), str(cache), hub.url]
        with killer.lock:  # nothing counts before the process can be killed for it
            process = subprocess.Popen(argv, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
            killer.pid = process.pid
        assert process.wait(60) == -signal.SIGKILL
        return {name: hub.times_sent(name, len(raw)) for name, raw in published.content.items()}


def journaled(cache: Path) -> int:
    """Bytes that the killed process had completed."""
    lines = [line for path in cache.glob("*/*.ranges") for line in path.read_text().splitlines()]
    return sum(said.get("len", 0) for said in map(json.loads, lines))


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_download_goes_on_where_it_was(published, tmp_path, monkeypatch, number):
    monkeypatch.setattr(range_fetch, "CHUNK_BYTES", 0)  # put back afterwards what the download sets
    monkeypatch.setattr(range_cache, "REQUEST_BYTES", 0)
    threshold = random.Random(1000 + number).randrange(published.errand.wanted_bytes)
    first = killed(published, tmp_path, threshold)
    kept = journaled(tmp_path)
    assert threshold - kept <= range_cache.THREADS * plan.REQUEST_BYTES, "only what was in flight is lost"
    with fake_hub() as hub:
        hub.repos[plan.REPO] = published.content
        folder = plan.download(published.directory, tmp_path, hub.url)
        assert sum(sent for _, _, sent in hub.sent) == published.errand.wanted_bytes - kept, (
            "what was journaled is believed"
        )
        second = {name: hub.times_sent(name, len(raw)) for name, raw in published.content.items()}
    for name, raw in published.content.items():
        wanted, have = np.zeros(len(raw), bool), (folder / name).read_bytes()
        for span in spans_of(published.errand.wanted, name):
            wanted[span] = True
            assert have[span] == raw[span]
        assert first[name].max() <= 1 and second[name].max() <= 1
        assert not (first[name] + second[name])[~wanted].any()
    resumed, whole = loaded(published, folder), loaded(published, published.directory)
    assert resumed.keys() == whole.keys()
    for place, tensor in whole.items():
        assert resumed[place].numpy().tobytes() == tensor.numpy().tobytes(), place
