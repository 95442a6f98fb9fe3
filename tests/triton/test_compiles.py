"""Every form is compiled to what a device runs, with the very arguments of a launch: no device is needed for that.

The interpreter runs what the compiler refuses, and knows neither registers nor shared memory.
"""

import pytest
import torch

from hydra.kernels.weights.encoded.cuda.tile_layout import tile_source
from tests.triton.conftest import INTERPRETED
from tests.triton.matrices import every_form

if not INTERPRETED:
    triton = pytest.importorskip("triton", reason="make test-triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hydra.kernels.weights.encoded.cuda import tile_product

FORMS = every_form(64, 1, torch.Generator().manual_seed(1))
SHARED_BYTES = {75: 64 << 10, 86: 99 << 10, 90: 227 << 10}  # of a program, by compute capability
TYPES = {
    torch.uint8: "u8", torch.int8: "i8", torch.int64: "i64",
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32",
}  # fmt: skip
OPTIONS = {"num_warps", "num_stages", "enable_fp_fusion"}


class Launched:
    """In the place of a kernel: keeps what it is launched with."""

    def __init__(self, kernel) -> None:
        self.kernel, self.launches = kernel, []

    def __getitem__(self, grid):
        return lambda *args, **constants: self.launches.append((args, constants))

    def compiled(self, capability: int):
        """The last launch, for a device."""
        args, named = self.launches[-1]
        names = self.kernel.arg_names
        signature = dict.fromkeys(names, "constexpr")
        for name, value in zip(names, args, strict=False):
            signature[name] = f"*{TYPES[value.dtype]}" if isinstance(value, torch.Tensor) else "i32"
        lines = {
            (at,): [["tt.divisibility", 16]]
            for at, value in enumerate(args)
            if isinstance(value, torch.Tensor) or value % 16 == 0
        }
        constants = {name: value for name, value in named.items() if name not in OPTIONS}
        options = {name: value for name, value in named.items() if name in OPTIONS}
        source = ASTSource(fn=self.kernel, signature=signature, constexprs=constants, attrs=lines)
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.fixture
def kernels(monkeypatch) -> dict[str, Launched]:
    launched = {name: Launched(getattr(tile_product, name)) for name in ("_multiply", "_decode", "_sum_splits")}
    for name, one in launched.items():
        monkeypatch.setattr(tile_product, name, one)
    return launched


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_compiled(name: str, kernels: dict[str, Launched]) -> None:
    """For a device with little shared memory, and as many rows of input as there may be."""
    matrix = FORMS[name]
    tile_product.TileProduct(tile_source(matrix), 108)(torch.zeros(64, matrix.columns, dtype=torch.bfloat16))
    assert kernels["_multiply"].compiled(86).metadata.shared <= SHARED_BYTES[86]


@pytest.mark.parametrize("capability", [75, 90])
@pytest.mark.parametrize("name", ["4 bits, zeros", "4 bits, table", "Q4_K"])
def test_other_devices(name: str, capability: int, kernels: dict[str, Launched]) -> None:
    matrix, tiles = FORMS[name], capability >= 80
    multiply = tile_product.TileProduct(tile_source(matrix), 108, multiplies_tiles=tiles, upcasts=not tiles)
    for n in (1,) if tiles else (1, 16):
        multiply(torch.zeros(n, matrix.columns, dtype=torch.float16))
        assert kernels["_multiply"].compiled(capability).metadata.shared <= SHARED_BYTES[capability]


def test_the_other_kernels_are_compiled(kernels: dict[str, Launched]) -> None:
    wide = every_form(6 * 8, 16, torch.Generator().manual_seed(2))["8 bits, zeros"]
    multiply = tile_product.TileProduct(tile_source(wide), 108, n_experts=6)
    experts = torch.tensor([0, 0, 2, 5])
    multiply.by_expert(torch.zeros(2, wide.columns, dtype=torch.float16), experts, torch.tensor([0, 1, 0, 1]))
    multiply.decode(0, wide.rows, torch.float16)
    ordered = FORMS["4 bits, ordered"]
    for kernel in ("_multiply", "_sum_splits", "_decode"):
        assert "entry" in kernels[kernel].compiled(86).asm["ptx"]
    tile_product.TileProduct(tile_source(ordered), 108).decode(0, 64, torch.bfloat16)
    assert "entry" in kernels["_decode"].compiled(75).asm["ptx"]
