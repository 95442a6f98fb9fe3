"""The kernel for one token per row, run by Triton's interpreter, against the same spelled out: caps, windows, sinks."""

import os

import pytest
import torch

from hydra.kernels.attention.paged_rows import PagedRows
from tests.unit.kernels.test_decode_step import SpelledOut

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1 before Triton is imported")
if INTERPRETED:
    from hydra.kernels.attention.paged_decode import PagedDecode

N_BLOCKS, BLOCK_SIZE = 40, 4
HEADS = [(4, 2, 16), (3, 1, 24)]


@pytest.mark.parametrize(("sinks", "softcap"), [(None, None), (None, 2.0), (3.0, None), (60.0, None), (3.0, 2.0)])
@pytest.mark.parametrize(("n_heads", "n_kv_heads", "width"), HEADS)
@pytest.mark.parametrize("processors", [1, 16])  # one split of the past, and so many that some are empty
def test_rows_are_mixed_as_spelled_out(n_heads, n_kv_heads, width, processors, softcap, sinks):
    random = torch.Generator().manual_seed(n_heads)
    keys, values = (torch.randn(N_BLOCKS * BLOCK_SIZE, n_kv_heads, width, generator=random) for _ in range(2))
    query = torch.randn(3, n_heads + n_kv_heads, width, generator=random)[:, :n_heads]  # as it lies beside the keys
    reach, first = torch.tensor([40, 1, 37]), torch.tensor([0, 0, 30])
    table = torch.stack([torch.randperm(N_BLOCKS, generator=random)[:10] for _ in range(3)]).to(torch.int32)
    scores = None if sinks is None else torch.randn(n_heads, generator=random) * sinks
    rows = PagedRows(table, reach, first, BLOCK_SIZE)
    answer = PagedDecode(0.3, softcap or 0.0, scores, processors)(query, keys, values, rows)
    expected = SpelledOut(0.3, softcap, [], scores)(query, keys, values, rows)
    assert torch.allclose(answer, expected, atol=2e-6), (answer - expected).abs().max()
