"""Linears over the compiled products: the outputs of torch's operators, few rows or many; and without a library."""

import pytest
import torch
from torch.nn import functional

from hydra.kernels.native.library import native_library, promise_library
from hydra.kernels.native.products import native_dense
from hydra.kernels.weights import linear
from hydra.kernels.weights.encoded.encoded_linear import EncodedLinear
from hydra.kernels.weights.encoded.encoded_matrix import GroupedMatrix
from hydra.kernels.weights.linear import NATIVE_ROWS, NativeLinear, PackedLinear, fastest_s, make_linear


def encoded(order: bool = False) -> GroupedMatrix:
    generator = torch.Generator().manual_seed(6)
    codes = torch.randint(0, 256, (70, 64), dtype=torch.uint8, generator=generator)
    columns = torch.randperm(128, generator=generator) if order else None
    return GroupedMatrix(
        codes=codes, scales=torch.rand(70, 4, generator=generator), bits=4, group_columns=32, order=columns
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("order", [False, True])
def test_an_encoded_linear_is_what_its_matrix_says(library, monkeypatch, dtype, order):
    monkeypatch.setattr("hydra.kernels.weights.encoded.encoded_linear.TILE_NUMBERS", 1000)
    matrix, bias = encoded(order), torch.randn(70, dtype=dtype)
    product = EncodedLinear(matrix, bias)
    assert product.native is not None
    numbers = matrix.decode(torch.float64)
    for n in (0, 1, 16, 17, 40):
        x = torch.randn(n, 128, dtype=dtype)
        exact = functional.linear(x.double(), numbers, bias.double())
        assert product(x).dtype == dtype
        eps = torch.finfo(dtype).eps * 64 + 1e-6
        assert torch.allclose(product(x).double(), exact, rtol=eps, atol=eps * 16)
    rows = torch.tensor([69, 0, 3, 3])
    assert torch.equal(product.look_up(rows, dtype), matrix.take(rows).decode(dtype))


def test_without_a_library_torch_computes_the_same(library):
    promise_library(lambda: None)
    try:
        assert native_library() is None
        product, x = EncodedLinear(encoded()), torch.randn(3, 128)
        assert product.native is None
        assert torch.equal(product(x), functional.linear(x, encoded().decode(torch.float32)))
    finally:
        promise_library(lambda: library)
    assert torch.allclose(EncodedLinear(encoded())(x), product(x), rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_a_row_of_a_native_linear_does_not_depend_on_the_rows_beside_it(library, bias):
    matrix, offset = torch.randn(100, 72), torch.randn(100) if bias else None
    own = native_dense(matrix)
    assert own is not None
    product, x = NativeLinear(matrix, own, offset), torch.randn(NATIVE_ROWS + 1, 72)
    together = product(x[:NATIVE_ROWS])
    for first, end in [(0, 1), (3, 8), (10, 27), (31, 32)]:
        assert torch.equal(product(x[first:end]), together[first:end])
    assert torch.allclose(product(x), functional.linear(x, matrix, offset), rtol=1e-5, atol=1e-5)
    assert product(x[:0]).shape == (0, 100)
    assert product.n_bytes == matrix.nbytes + (offset.nbytes if bias else 0)


@pytest.mark.parametrize(("times", "form"), [([1.0, 0.5], NativeLinear), ([1.0, 0.99], PackedLinear)])
def test_a_large_matrix_gets_what_was_measured_once_for_its_shape(library, monkeypatch, times, form):
    measured: list[int] = []

    def measure(products, row, between_bytes):
        measured.append(row.shape[1])
        return times

    monkeypatch.setattr(linear, "fastest_s", measure)
    monkeypatch.setattr(linear, "_choices", linear._Choices())
    matrix, x = torch.randn(1024, 512), torch.randn(2, 512)
    for bias in (None, torch.randn(1024)):
        product = make_linear(matrix, bias)
        assert isinstance(product, form)
        assert torch.allclose(product(x), functional.linear(x, matrix, bias), rtol=1e-4, atol=1e-4)
    assert measured == [512]
    assert isinstance(make_linear(torch.randn(512, 64)), PackedLinear) and measured == [512]


def test_the_shortest_time_of_each_counts_and_they_take_turns():
    ticks = iter([0.0, 3.0, 10.0, 14.0, 20.0, 21.0, 30.0, 39.0, 40.0, 42.0, 50.0, 52.0])
    order: list[str] = []
    products = [lambda x: order.append("a") or x, lambda x: order.append("b") or x]
    assert fastest_s(products, torch.ones(1, 4), 64, clock=lambda: next(ticks)) == [1.0, 2.0]
    assert "".join(order) == "ababab"
