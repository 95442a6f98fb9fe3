"""Products with encoded matrices on a CUDA device: against their twins, captured, and their share of bandwidth."""

import statistics

import attrs
import pytest
import torch

from hydra.bench.device_product_child import measure_products
from hydra.kernels.devices import multiplies_tiles, native_dtypes
from hydra.kernels.tensors import TORCH_DTYPES
from hydra.kernels.weights.encoded.cuda.device_product import device_product
from hydra.kernels.weights.encoded.encoded_linear import EncodedLinear
from hydra.kernels.weights.encoded.encoded_matrix import EncodedMatrix, GroupedMatrix
from tests.triton.matrices import error, every_form, grouped_matrix, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
DEVICE = torch.device("cuda:0")
ROWS = 300
FORMS = every_form(ROWS, 16, torch.Generator().manual_seed(1))
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def moved(matrix: EncodedMatrix) -> EncodedMatrix:
    """The same matrix on the device."""
    sides = attrs.asdict(matrix, recurse=False)
    return type(matrix)(
        **{name: side.to(DEVICE) if isinstance(side, torch.Tensor) else side for name, side in sides.items()}
    )


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_its_twin(name: str) -> None:
    matrix = FORMS[name]
    product = device_product(moved(matrix))
    assert product is not None
    for dtype in (TORCH_DTYPES[native] for native in native_dtypes(DEVICE)):
        decoded = product.decode(0, ROWS, dtype).cpu()
        assert torch.allclose(
            decoded.float(), matrix.decode(dtype).float(), rtol=1e-2 * (dtype != torch.float32), atol=1e-6
        )
        for n in (1, 2, 16, 17, 64):
            x = torch.randn(n, matrix.columns, generator=torch.Generator().manual_seed(n)).to(dtype)
            assert error(product(x.to(DEVICE)).cpu(), reference(x, matrix)) < TOLERANCE[dtype], (n, dtype)


@pytest.mark.parametrize("name", ["4 bits, zeros", "4 bits, table", "Q6_K", "float8 128x128"])
def test_a_captured_product_has_the_bits_of_a_plain_one(name: str) -> None:
    linear = EncodedLinear(moved(FORMS[name]))
    x = torch.randn(3, linear.matrix.columns, device=DEVICE, dtype=torch.float16)
    plain = [linear(x) for _ in range(3)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = linear(x)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(plain[0], plain[2]) and torch.equal(captured, plain[0])


def test_a_row_has_the_same_bits_alone_and_among_others() -> None:
    if not multiplies_tiles(DEVICE):
        pytest.skip("a lone row is multiplied in another way there")
    product = device_product(moved(FORMS["Q4_K"]))
    assert product is not None
    x = torch.randn(16, FORMS["Q4_K"].columns, device=DEVICE, dtype=torch.float16)
    among = product(x)
    assert all(torch.equal(product(x[at : at + 1])[0], among[at]) for at in range(16))


def test_many_rows_are_multiplied_piece_by_piece() -> None:
    matrix = FORMS["4 bits, ordered"]
    x = torch.randn(200, matrix.columns, generator=torch.Generator().manual_seed(2)).to(torch.float16)
    assert error(EncodedLinear(moved(matrix))(x.to(DEVICE)).cpu(), reference(x, matrix)) < 2e-3


def test_experts_with_and_without_rows() -> None:
    stacked = grouped_matrix(4, "zeros", 8 * 96, 1024, 128, torch.Generator().manual_seed(3))
    product = device_product(moved(stacked), n_experts=8)
    assert product is not None
    experts = torch.tensor([1] * 20 + [2] + [5] * 16)
    origin = torch.arange(37) % 12
    x = torch.randn(12, 1024, generator=torch.Generator().manual_seed(4)).to(torch.float16)
    answer = product.by_expert(x.to(DEVICE), experts.to(DEVICE), origin.to(DEVICE)).cpu()
    for row, expert in enumerate(experts.tolist()):
        own: GroupedMatrix = stacked.take(slice(expert * 96, (expert + 1) * 96))
        assert error(answer[row], reference(x[origin[row]][None], own)[0]) < 2e-3


def test_products_at_one_row_have_most_of_the_bandwidth() -> None:
    rounds = measure_products(DEVICE, rounds=9)
    assert statistics.median(one["ours_per_s"] / one["copied_per_s"] for one in rounds) >= 0.6
