"""Matrices of one kind become one with the same numbers; those of different kinds stay apart, in order."""

import attrs
import pytest
import torch

from hydra.kernels.weights.encoded.encoded_matrix import BlockMatrix, Float8Matrix, GroupedMatrix
from hydra.kernels.weights.encoded.stacked_rows import stack_rows
from hydra.kernels.weights.encoded.unpack import unpack_blocks
from hydra.protocol.model.encoding import BLOCK_ENCODINGS


def codes(rows: int, width: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (rows, width), generator=torch.Generator().manual_seed(rows)).to(torch.uint8)


def grouped(rows: int, **sides: torch.Tensor) -> GroupedMatrix:
    scales = torch.rand(rows, 2, generator=torch.Generator().manual_seed(rows)).to(torch.float16)
    return GroupedMatrix(codes=codes(rows), scales=scales, bits=4, group_columns=32, **sides)


def float8(rows: int, tile: int) -> Float8Matrix:
    numbers = torch.randn(rows, 32, generator=torch.Generator().manual_seed(rows)).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-rows // tile), 2, generator=torch.Generator().manual_seed(tile))
    return Float8Matrix(codes=numbers, scales=scales, group_rows=tile, group_columns=16)


def blocks(name: str, rows: int) -> BlockMatrix:
    return BlockMatrix(encoding=BLOCK_ENCODINGS[name], data=codes(rows, 2 * BLOCK_ENCODINGS[name].block_bytes) & 59)


TABLE = torch.linspace(-1, 1, 16)
KINDS = {
    "plain": [grouped(5), grouped(3), grouped(8)],
    "zeros": [grouped(rows, zeros=codes(rows, 2) & 15) for rows in (4, 6)],
    "minima": [grouped(rows, minima=torch.full((rows, 2), rows, dtype=torch.float16)) for rows in (4, 6)],
    "tables": [grouped(4, table=TABLE), grouped(2, table=TABLE.clone())],
    "orders": [grouped(4, order=torch.arange(64).flip(0)), grouped(2, order=torch.arange(64).flip(0))],
    "blocks": [blocks("Q6_K", 3), blocks("Q6_K", 4)],
    "tiles": [float8(64, 16), float8(32, 16)],
    "tiles of another height": [float8(40, 16), float8(12, 12), float8(8, 128)],
    "rows of their own": [float8(5, 1), float8(3, 1)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_alike_ones_become_one(kind):
    matrices = KINDS[kind]
    (whole,) = stack_rows(matrices)
    expected = torch.cat([matrix.decode(torch.float32) for matrix in matrices])
    assert torch.equal(whole.decode(torch.float32), expected) and expected.isfinite().all()
    assert torch.equal(whole.take(slice(2, 6)).decode(torch.float32), expected[2:6])


def test_a_tile_is_not_cut_finer_than_it_must_be():
    (whole,) = stack_rows([float8(256, 128), float8(128, 128)])
    assert whole.group_rows == 128 and whole.scales.shape == (3, 2)
    (whole,) = stack_rows([float8(256, 256), float8(128, 128)])  # a scale for each tensor
    assert whole.group_rows == 128 and torch.equal(whole.scales[0], whole.scales[1])


@pytest.mark.parametrize(
    "other",
    [
        grouped(3, zeros=codes(3, 2) & 15),
        grouped(3, table=TABLE),
        grouped(3, order=torch.arange(64)),
        attrs.evolve(grouped(3), scales=torch.ones(3, 2)),
        attrs.evolve(grouped(3), group_columns=64, scales=torch.ones(3, 1, dtype=torch.float16)),
        unpack_blocks("Q8_0", codes(3, 68)),
        blocks("Q6_K", 3),
        float8(4, 4),
    ],
    ids=lambda matrix: type(matrix).__name__,
)
def test_others_stay_apart(other):
    first, last = grouped(5), grouped(2)
    assert stack_rows([first, other, last]) == [first, other, last]


def test_tables_and_encodings_must_be_the_same():
    for pair in (
        [grouped(3, table=TABLE), grouped(3, table=TABLE * 2)],
        [blocks("Q6_K", 3), blocks("Q4_K", 3)],
        [float8(4, 4), attrs.evolve(float8(4, 4), group_columns=32, scales=torch.ones(1, 1))],
    ):
        assert stack_rows(pair) == pair
    assert stack_rows([]) == []


def test_only_neighbours_are_joined():
    first, second, third = grouped(5), grouped(2), grouped(3, table=TABLE)
    joined, alone, last = stack_rows([first, second, third, first])
    assert joined.rows == 7 and alone is third and last is first
