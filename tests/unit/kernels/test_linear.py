"""Packed matrices multiply as plain ones do, and each row's bits are its own."""

import pytest
import torch
from torch.nn import functional

from hydra.kernels.weights.linear import linear, pack, packs

CPU = torch.device("cpu")
SHAPES = [(1003, 64), (64, 176), (5632, 256), (1, 16)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_matrix_multiplies_as_a_plain_one(shape, bias):
    torch.manual_seed(1)
    matrix, x = torch.randn(shape), torch.randn(7, shape[1])
    offset = torch.randn(shape[0]) if bias else None
    made = linear(x, pack(matrix), offset)
    assert torch.allclose(made, functional.linear(x, matrix, offset), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not packs(torch.float32, CPU), reason="this torch was built without oneDNN")
def test_a_row_does_not_depend_on_the_rows_beside_it():
    torch.manual_seed(2)
    matrix, x = pack(torch.randn(1024, 512)), torch.randn(65, 512)
    together = linear(x, matrix)
    for first, end in [(0, 1), (0, 2), (3, 8), (16, 49), (64, 65)]:
        assert torch.equal(linear(x[first:end], matrix), together[first:end])


def test_packing_takes_no_more_memory_and_leaves_what_it_cannot_pack():
    matrix = torch.randn(100, 60)
    assert pack(matrix).nbytes == matrix.nbytes
    exact = matrix.double()
    assert pack(exact) is exact and not packs(torch.float64, CPU)
    assert not packs(torch.float32, torch.device("cuda"))
