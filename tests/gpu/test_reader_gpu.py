"""Through pinned slabs onto a CUDA device: the same values that the CPU reads, whatever dtype they change to."""

import pytest
import torch

from hydra.kernels.weights import staging
from hydra.kernels.weights.reader import read_ranges
from tests.unit.kernels.bench import publish, quiet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk", [4096, 8 << 20])
def test_the_device_holds_what_the_host_holds(tmp_path, monkeypatch, stored, wanted, chunk):
    monkeypatch.setattr(staging, "SLAB_BYTES", chunk)
    model = publish(tmp_path, seed=6, dtype=stored, num_hidden_layers=2)

    def read(device: str) -> list[torch.Tensor]:
        pairs = [(source, torch.empty(source.shape, dtype=wanted, device=device)) for source in model.tensors]
        read_ranges(model.path, pairs, quiet)
        return [target.cpu() for _, target in pairs]

    for here, there in zip(read("cpu"), read("cuda:0"), strict=True):
        assert torch.equal(here, there)
