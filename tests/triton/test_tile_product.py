"""The product with every form of encoded matrix against its twin: numbers, tails, rows alone and among others, experts.

The interpreter cuts float32 to bfloat16 instead of rounding it: in that dtype one place more may differ.
"""

import pytest
import torch
from torch import Tensor

from hydra.kernels.weights.encoded.cuda.tile_layout import tile_source
from hydra.kernels.weights.encoded.encoded_matrix import EncodedMatrix, Float8Matrix
from tests.triton.conftest import INTERPRETED
from tests.triton.matrices import BLOCK_SCALES, error, every_form, float8_matrix, grouped_matrix, reference

if INTERPRETED:
    from hydra.kernels.weights.encoded.cuda.tile_product import TileProduct

ROWS = 70  # a tile and a little
FORMS = every_form(ROWS, 2, torch.Generator().manual_seed(1))
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}
no_numbers = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, about what a test is for
SPLITTING = 64  # processors: so many that few steps are left for a split


def product(matrix: EncodedMatrix, processors: int = 1, dtype: torch.dtype = torch.float32, **more) -> "TileProduct":
    source = tile_source(matrix)
    assert source is not None
    return TileProduct(source, processors, upcasts=dtype == torch.bfloat16, **more)


def given(n: int, matrix: EncodedMatrix, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(n, matrix.columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("name", FORMS)
def test_a_matrix_is_decoded_as_its_twin_decodes_it(name: str) -> None:
    matrix = FORMS[name]
    near = 2e-7 if name == "4 bits, minima" else 0.0  # of float32: rounded once or twice
    answer, expected = product(matrix).decode(0, ROWS, torch.float32), matrix.decode(torch.float32)
    assert torch.allclose(answer, expected, rtol=0, atol=near)
    assert torch.equal(product(matrix).decode(9, 40, torch.float16), matrix.decode(torch.float16)[9:40])


@pytest.mark.parametrize("name", FORMS)
def test_a_product_is_that_of_the_twin(name: str) -> None:
    matrix = FORMS[name]
    for n, dtype in ((1, torch.float32), (3, torch.float16), (17, torch.bfloat16)):
        x = given(n, matrix, dtype)
        answer = product(matrix, SPLITTING, dtype)(x)
        assert answer.dtype == dtype and answer.shape == (n, ROWS)
        assert error(answer, reference(x, matrix)) < TOLERANCE[dtype], (n, dtype)
    lone = product(matrix, SPLITTING, multiplies_tiles=False)(given(1, matrix))
    assert error(lone, reference(given(1, matrix), matrix)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("n", [2, 15, 16, 31, 33, 63, 64])
def test_any_number_of_rows_up_to_the_most(n: int) -> None:
    matrix = FORMS["4 bits, zeros"]
    assert error(product(matrix)(given(n, matrix)), reference(given(n, matrix), matrix)) < TOLERANCE[torch.float32]


def test_sizes_that_are_less_than_a_tile() -> None:
    random = torch.Generator().manual_seed(2)
    for rows, columns in ((1, 2), (5, 30), (64, 128), (65, 130), (129, 258)):
        matrix = grouped_matrix(4, "middle", rows, columns, 32, random)
        assert error(product(matrix)(given(3, matrix)), reference(given(3, matrix), matrix)) < TOLERANCE[torch.float32]


@no_numbers
@pytest.mark.parametrize("name", ["Q4_K", "4 bits, zeros", "float8 128x128"])
def test_a_row_has_the_same_bits_alone_and_among_others(name: str) -> None:
    """Up to sixteen rows have one shape of tile; what stands beside a row, be it no number, does not reach it."""
    matrix = FORMS[name]
    multiply = product(matrix, SPLITTING)
    x = given(16, matrix)
    x[5, 3], x[6, 4] = float("nan"), float("inf")
    among = multiply(x)
    assert among[5].isnan().all() and not among[7].isnan().any()
    for at in (0, 7, 15):
        assert torch.equal(multiply(x[at : at + 1])[0], among[at])
    assert torch.equal(multiply(x[2:5]), among[2:5])
    more = torch.cat((x, 3 * x))
    assert torch.equal(multiply(more)[7], multiply(more[:20])[7]), "up to 32, another shape"


def test_a_product_is_the_same_in_every_run() -> None:
    matrix = FORMS["Q6_K"]
    x = given(4, matrix, torch.float16)
    assert torch.equal(product(matrix, SPLITTING)(x), product(matrix, SPLITTING)(x))


def test_the_number_of_rows_does_not_change_how_a_matrix_is_divided() -> None:
    matrix = grouped_matrix(4, "middle", 64, 4096, 128, torch.Generator().manual_seed(4))
    divided = product(matrix, 8)
    assert divided._splits(1) == (8, 4)
    assert error(divided(given(2, matrix)), reference(given(2, matrix), matrix)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("split", [1, SPLITTING])
def test_experts_that_have_many_rows_few_and_none(split: int) -> None:
    """Expert 1 has more rows than a program multiplies; 0, 3 and 5 have none."""
    random = torch.Generator().manual_seed(5)
    experts = torch.tensor([1] * 19 + [2] + [4] * 16)
    origin = torch.randint(0, 12, (36,), generator=random)
    for name, stacked in {
        "group": grouped_matrix(4, "zeros", 6 * 40, 512, 32, random),
        "float8": float8_matrix(6 * 40, 512, 40, 128, random),
    }.items():
        multiply = product(stacked, split, n_experts=6)
        x = given(12, stacked)
        answer = multiply.by_expert(x, experts, origin)
        assert answer.shape == (36, 40)
        for row in (0, 15, 16, 18, 19, 20, 35):
            expert = int(experts[row])
            own = stacked.take(slice(expert * 40, (expert + 1) * 40))
            assert error(answer[row], reference(x[origin[row]][None], own)[0]) < TOLERANCE[torch.float32], (name, row)
        assert torch.equal(multiply.by_expert(x[origin], experts), answer), "rows that are there already"
        assert torch.equal(multiply.by_expert(x, experts[19:20], origin[19:20])[0], answer[19]), "a row alone"


@no_numbers
def test_the_largest_number_of_one_group_does_not_leave_it() -> None:
    """Behind the last column nothing is read: a scale that is no number stays with its own columns."""
    matrix = grouped_matrix(4, "middle", 3, 96, 32, torch.Generator().manual_seed(6))
    matrix.scales[1, 2] = float("inf")
    answer = product(matrix)(given(2, matrix))
    assert answer[:, (0, 2)].isfinite().all() and not answer[:, 1].isfinite().any()


def test_a_float8_that_is_no_number_is_none() -> None:
    matrix = float8_matrix(4, 64, 4, 64, torch.Generator().manual_seed(7))
    matrix.codes.view(torch.uint8)[2, 7], matrix.codes.view(torch.uint8)[3, 8] = 0x7F, 0xFF
    assert torch.equal(product(matrix).decode(0, 4, torch.float32).isnan(), matrix.decode(torch.float32).isnan())


def test_what_no_kernel_decodes_is_left_to_the_twin() -> None:
    random = torch.Generator().manual_seed(8)
    assert tile_source(grouped_matrix(4, "middle", 3, 9 * 2, 9, random)) is None, "a byte of two groups"
    wide = float8_matrix(6, 64, 2, 32, random)
    apart = Float8Matrix(codes=wide.codes[:, ::2], scales=wide.scales, group_rows=2, group_columns=32)
    assert tile_source(apart) is None, "codes that do not lie one behind the other"
    assert all(tile_source(FORMS[name]) is not None for name in BLOCK_SCALES)
