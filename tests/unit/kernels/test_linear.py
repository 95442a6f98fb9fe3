"""Packed matrices multiply as plain ones do, and each row's bits are its own."""

import pytest
import torch
from torch.nn import functional

from hydra.kernels.weights.linear import PackedLinear, PlainLinear, make_linear, packs_linears

CPU = torch.device("cpu")
SHAPES = [(1003, 64), (64, 176), (5632, 256), (1, 16)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_matrix_multiplies_as_a_plain_one(shape, bias):
    torch.manual_seed(1)
    matrix, x = torch.randn(shape), torch.randn(7, shape[1])
    offset = torch.randn(shape[0]) if bias else None
    product = make_linear(matrix, offset)(x)
    assert torch.allclose(product, functional.linear(x, matrix, offset), rtol=1e-4, atol=1e-4)
    assert torch.equal(PlainLinear(matrix, offset)(x), functional.linear(x, matrix, offset))


@pytest.mark.skipif(not packs_linears(torch.float32, CPU), reason="this torch was built without oneDNN")
def test_a_row_does_not_depend_on_the_rows_beside_it():
    torch.manual_seed(2)
    linear, x = make_linear(torch.randn(1024, 512)), torch.randn(65, 512)
    assert isinstance(linear, PackedLinear)
    together = linear(x)
    for first, end in [(0, 1), (0, 2), (3, 8), (16, 49), (64, 65)]:
        assert torch.equal(linear(x[first:end]), together[first:end])


def test_packing_takes_no_more_memory_and_leaves_what_it_cannot_pack():
    matrix, bias = torch.randn(100, 60), torch.randn(100)
    assert make_linear(matrix).n_bytes == matrix.nbytes
    assert make_linear(matrix, bias).n_bytes == PlainLinear(matrix, bias).n_bytes == matrix.nbytes + bias.nbytes
    exact = make_linear(matrix.double())
    assert isinstance(exact, PlainLinear) and not packs_linears(torch.float64, CPU)
    assert not packs_linears(torch.float32, torch.device("cuda"))
