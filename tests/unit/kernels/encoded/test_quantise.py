"""Full precision made into 8 or 4 bits: never worse in any group than the plain way, and always the same."""

import pytest
import torch

from hydra.kernels.weights.encoded import code_bytes
from hydra.kernels.weights.encoded.encoded_matrix import GroupedMatrix
from hydra.kernels.weights.encoded.quantise import quantise
from hydra.protocol.refusal import RefusalError

SEED = 11


def normal(rows: int, columns: int, dtype: torch.dtype = torch.float32, width: float = 0.02) -> torch.Tensor:
    return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(SEED)) * width).to(dtype)


def plain_way(matrix: torch.Tensor, bits: int, scale_dtype: torch.dtype) -> torch.Tensor:
    """Round to nearest with the scale at which the largest number of a group is the last code."""
    end = (1 << (bits - 1)) - 1
    groups = matrix.float().view(matrix.shape[0], -1, 32)
    scale = (groups.abs().amax(2, keepdim=True) / end).to(scale_dtype).float()
    codes = (groups / scale).round().clamp(-end - 1, end)
    return (codes * scale).view(matrix.shape)


def squared_errors(matrix: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    return (matrix.double() - decoded.double()).square().view(matrix.shape[0], -1, 32).sum(2)


@pytest.mark.parametrize(("bits", "gain"), [(4, 0.72), (8, 0.9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_no_group_is_worse_than_the_plain_way(bits, gain, dtype):
    matrix = normal(96, 256, dtype)
    matrix[:4] *= torch.logspace(0, 2, 256)[None]  # outliers
    quantised = quantise(matrix, bits, name="q")
    ours = squared_errors(matrix, quantised.decode(torch.float32))
    plain = squared_errors(matrix, plain_way(matrix, bits, quantised.scales.dtype))
    assert (ours <= plain * (1 + 1e-4)).all()  # errors are compared in float32
    assert ours[4:].sum() < gain * plain[4:].sum()


@pytest.mark.parametrize("bits", [4, 8])
def test_the_form(bits, monkeypatch):
    matrix = normal(21, 70)  # the last group of a row has 6
    quantised = quantise(matrix, bits, name="q")
    assert isinstance(quantised, GroupedMatrix) and quantised.scales.dtype == torch.float16
    assert (quantised.rows, quantised.columns, quantised.group_columns, quantised.bits) == (21, 70, 32, bits)
    assert quantised.scales.shape == (21, 3) and quantised.zeros is quantised.minima is quantised.table is None
    assert (quantised.decode(torch.float32) - matrix).abs().max() < 0.1 * 16 / (1 << bits)
    monkeypatch.setattr(code_bytes, "PIECE_NUMBERS", 100)
    again = quantise(matrix, bits, name="q")
    assert torch.equal(again.codes, quantised.codes) and torch.equal(again.scales, quantised.scales)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("number", [0.0, 1e-30, -3e-6, 1e30, 5.0])
def test_groups_of_one_number(bits, number):
    """float16 holds no scale for the very small and the very large."""
    matrix = torch.full((2, 64), number)
    decoded = quantise(matrix, bits, name="q").decode(torch.float32)
    assert torch.allclose(decoded, matrix, rtol=0.004, atol=0)


def test_numbers_that_are_not_finite_and_odd_columns():
    matrix = normal(4, 64)
    matrix[2, 40] = float("inf")
    with pytest.raises(RefusalError, match="q_proj holds NaN or infinity"):
        quantise(matrix, 4, name="q_proj")
    with pytest.raises(RefusalError, match="33 columns of 4 bits"):
        quantise(normal(4, 33), 4, name="q")
    assert quantise(normal(4, 33), 8, name="q").columns == 33
