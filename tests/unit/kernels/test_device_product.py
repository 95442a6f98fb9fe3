"""Encoded matrices where a device has a product for them: who is multiplied by it, and experts all at once.

What a CUDA device has kernels for is spelled out here in plain torch.
"""

import attrs
import pytest
import torch
from torch import Tensor

from hydra.kernels.model.feed_forward import Mixture
from hydra.kernels.weights.encoded.cuda.device_product import ROWS_MAX, device_product
from hydra.kernels.weights.encoded.cuda.tile_layout import tile_source
from hydra.kernels.weights.encoded.encoded_linear import EncodedLinear
from hydra.kernels.weights.encoded.encoded_matrix import EncodedMatrix, Float8Matrix, GroupedMatrix
from hydra.kernels.weights.encoded.expert_linears import ExpertLinears, expert_linears
from hydra.kernels.weights.linear import PlainLinear
from hydra.protocol.model.layer_spec import MoeSpec


@attrs.frozen(eq=False)
class SpelledProduct:
    """As TileProduct."""

    matrix: EncodedMatrix
    n_experts: int
    called: list[str]

    def __call__(self, x: Tensor) -> Tensor:
        self.called.append(f"{len(x)} rows")
        return x @ self.matrix.decode(x.dtype).T

    def by_expert(self, x: Tensor, experts: Tensor, origin: Tensor | None = None) -> Tensor:
        assert experts.tolist() == sorted(experts.tolist())
        self.called.append(f"{len(experts)} by expert")
        each = self.matrix.decode(x.dtype).view(self.n_experts, -1, x.shape[1])
        rows = x if origin is None else x.index_select(0, origin)
        return torch.einsum("nc,nrc->nr", rows, each.index_select(0, experts))

    def decode(self, first: int, end: int, dtype: torch.dtype) -> Tensor:
        self.called.append(f"decode {first} to {end}")
        return self.matrix.decode(dtype)[first:end]


@pytest.fixture
def called(monkeypatch) -> list[str]:
    calls: list[str] = []

    def product(matrix: EncodedMatrix, n_experts: int = 1) -> SpelledProduct:
        return SpelledProduct(matrix, n_experts, calls)

    monkeypatch.setattr("hydra.kernels.weights.encoded.encoded_linear.device_product", product)
    monkeypatch.setattr("hydra.kernels.weights.encoded.expert_linears.device_product", product)
    return calls


def grouped(rows: int, columns: int, seed: int) -> GroupedMatrix:
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, generator=random)
    scales = torch.rand(rows, columns // 8, generator=random) / 8
    return GroupedMatrix(codes=codes, scales=scales, bits=4, group_columns=8)


def test_a_few_rows_are_the_product_s_and_many_are_decoded_in_pieces(called: list[str], monkeypatch) -> None:
    monkeypatch.setattr("hydra.kernels.weights.encoded.encoded_linear.DEVICE_TILE_NUMBERS", 5 * 16)
    matrix, bias = grouped(12, 16, 1), torch.arange(12.0)
    linear = EncodedLinear(matrix, bias)
    x = torch.randn(ROWS_MAX + 1, 16, generator=torch.Generator().manual_seed(2))
    expected = x @ matrix.decode(torch.float32).T + bias
    assert torch.allclose(linear(x[:ROWS_MAX]), expected[:ROWS_MAX], atol=1e-5) and called == ["64 rows"]
    assert torch.allclose(linear(x), expected, atol=1e-5)
    assert called[1:] == ["decode 0 to 5", "decode 5 to 10", "decode 10 to 12"]
    assert linear(x[:0]).shape == (0, 12)


def test_no_device_but_cuda_has_a_product() -> None:
    assert tile_source(grouped(4, 16, 1)) is not None and device_product(grouped(4, 16, 1)) is None
    assert expert_linears(grouped(4, 16, 1), 2) is None


def test_a_mixture_needs_no_host_where_all_experts_are_one_product(called: list[str]) -> None:
    spec = MoeSpec(n_experts=4, top_k=2, intermediate=8, activation="silu", normalised=True)
    gate_up, down = grouped(4 * 16, 24, 3), grouped(4 * 24, 8, 4)
    biases = torch.randn(4, 24, generator=torch.Generator().manual_seed(5))
    router = PlainLinear(torch.randn(4, 24, generator=torch.Generator().manual_seed(6)))

    def swiglu(both: Tensor) -> Tensor:
        gate, up = both.chunk(2, -1)
        return torch.nn.functional.silu(gate) * up

    kinds = expert_linears(gate_up, 4), expert_linears(down, 4, biases)
    assert isinstance(kinds[0], ExpertLinears) and isinstance(kinds[1], ExpertLinears)
    at_once = Mixture(spec, router, *kinds, swiglu)
    each = [
        [PlainLinear(rows, None if bias is None else bias[expert]) for expert, rows in enumerate(decoded.chunk(4))]
        for decoded, bias in ((gate_up.decode(torch.float32), None), (down.decode(torch.float32), biases))
    ]
    one_by_one = Mixture(spec, router, *each, swiglu)
    x = torch.randn(ROWS_MAX + 1, 24, generator=torch.Generator().manual_seed(7))
    assert at_once.steady and not one_by_one.steady
    assert torch.allclose(at_once(x[:9]), one_by_one(x[:9]), atol=1e-5) and called == ["18 by expert"] * 2
    assert torch.allclose(at_once(x), one_by_one(x), atol=1e-5) and "18 by expert" not in called[2:]
    assert len(kinds[0]) == 4 and sum(linear.n_bytes for linear in kinds[0]) == gate_up.n_bytes


def test_experts_are_slices_of_what_they_lie_in(called: list[str]) -> None:
    codes = torch.randn(4 * 6, 8, generator=torch.Generator().manual_seed(8)).to(torch.float8_e4m3fn)
    for tall in (6, 3, 1):
        scales = torch.rand(-(-24 // tall), 2, generator=torch.Generator().manual_seed(9))
        matrix = Float8Matrix(codes=codes, scales=scales, group_rows=tall, group_columns=4)
        experts = expert_linears(matrix, 4)
        assert experts is not None and sum(linear.n_bytes for linear in experts) == matrix.n_bytes
        decoded = torch.cat([linear.matrix.decode(torch.float32) for linear in experts])
        assert torch.equal(decoded, matrix.decode(torch.float32))
    uneven = Float8Matrix(codes=codes, scales=torch.rand(5, 2), group_rows=5, group_columns=4)
    apart = expert_linears(uneven, 4)
    assert apart is not None, "an expert that begins inside a tile has scales of its own"
    decoded = torch.cat([linear.matrix.decode(torch.float32) for linear in apart])
    assert torch.equal(decoded, uneven.decode(torch.float32))
