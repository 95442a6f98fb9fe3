"""Every family on a CUDA device says what transformers says on the CPU: logits, greedy tokens, and in bfloat16."""

import pytest
import torch

from tests.unit.kernels.bench import Pipeline
from tests.unit.kernels.family_models import SHAPES, Shape, publish_family, publish_gentle
from tests.unit.kernels.test_families import (
    logits_of,
    ragged_greedy,
    reference_greedy,
    reference_logits,
    relative_errors,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_float32(shape: Shape, tmp_path) -> None:
    model = publish_family(tmp_path, shape)
    said = logits_of(Pipeline(model, (1, 3), device="cuda:0", kv_blocks=180), model)
    assert float(relative_errors(said, reference_logits(model, torch.float32)).max()) < 2e-4
    assert ragged_greedy(Pipeline(model, (1, 3), device="cuda:0", kv_blocks=180), model) == reference_greedy(model)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_bfloat16(shape: Shape, tmp_path) -> None:
    model = publish_gentle(tmp_path, shape)
    said = logits_of(Pipeline(model, (1, 3), device="cuda:0", kv_blocks=180, dtype="bfloat16"), model)
    assert 0 < float(relative_errors(said, reference_logits(model, torch.bfloat16)).max()) < 2e-2
