"""The compiled products agree with what each form is defined to be, and the bits of a row of input are its own."""

import ctypes
import mmap
import os
import shutil

import pytest
import torch
from torch.nn import functional

from hydra.kernels.native.library import promise_library
from hydra.kernels.native.products import BLOCK_NUMBERS, INPUT_ROWS_MAX, native_dense, native_groups
from hydra.kernels.weights.encoded.encoded_matrix import BlockMatrix, EncodedMatrix, Float8Matrix, GroupedMatrix
from hydra.kernels.weights.encoded.native_form import native_form
from hydra.processes.native_build import NativeBuild
from hydra.protocol.model.encoding import BLOCK_ENCODINGS
from tests.unit.kernels.native.block_reference import decode_reference, random_blocks

ROWS = 37  # of a matrix: no multiple of anything
COMPANIES = ((1, 6), (7, 8), (9, 11), (12, 16))  # so many rows of input are multiplied in one way, whatever the form
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
TABLES = {
    "mxfp4": [*FP4, *(-number for number in FP4)],
    "iq4_nl": [-127.0, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113],
    "any": [float(number) for number in torch.linspace(-1, 1, 16) ** 3],
}
SCALES = (torch.float16, torch.bfloat16, torch.float32)

pytestmark = pytest.mark.usefixtures("library")


def grouped(columns: int, group: int, bits: int, kind: str, scale_dtype: torch.dtype = torch.float16) -> GroupedMatrix:
    """Random codes; scales of both signs, some of them nought."""
    generator = torch.Generator().manual_seed(columns * 31 + group)
    groups = -(-columns // group)
    scales = torch.randn(ROWS, groups, generator=generator)
    scales[::5, 0] = 0
    codes = torch.randint(0, 256, (ROWS, columns * bits // 8), dtype=torch.uint8, generator=generator)
    sides = {}
    if kind == "zeros":
        sides["zeros"] = torch.randint(0, 1 << bits, (ROWS, groups), dtype=torch.uint8, generator=generator)
    elif kind == "minima":
        sides["minima"] = torch.randn(ROWS, groups, generator=generator).to(scale_dtype)
    elif kind in TABLES:
        sides["table"] = torch.tensor(TABLES[kind])
    elif bits == 8:
        codes = codes.view(torch.int8)
    return GroupedMatrix(codes=codes, scales=scales.to(scale_dtype), bits=bits, group_columns=group, **sides)


def wild(n: int, columns: int, seed: int = 3) -> torch.Tensor:
    """Rows as a model has them: of very different sizes, with outliers, and with stretches of nought."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, columns, generator=generator) * torch.logspace(-3, 3, n).unsqueeze(1)
    x[:, 5 % columns] *= 300
    x[n // 2, : columns // 2] = 0
    return x


def check(matrix: EncodedMatrix, numbers: torch.Tensor) -> None:
    """`numbers`: the matrix in float32. A product may be as wrong as the input's 21 bits allow, and a float32 sum."""
    native = native_form(matrix)
    assert native is not None
    decoded = native.decode(0, ROWS)
    if getattr(matrix, "minima", None) is not None and matrix.scales.dtype == torch.float32:  # torch rounds once
        assert torch.allclose(decoded, numbers, rtol=2e-7, atol=2e-6)
        numbers = decoded
    assert torch.equal(decoded, numbers)
    picked = torch.tensor([3, 0, ROWS - 1, 3])
    assert torch.equal(native.decode_rows(picked), numbers[picked])
    assert torch.equal(native.decode(5, 9), numbers[5:9])
    x = wild(INPUT_ROWS_MAX, matrix.columns)
    exact = x.double() @ numbers.double().T
    largest = functional.max_pool1d(functional.pad(x.abs(), (0, -x.shape[1] % 64)), 64).repeat_interleave(64, 1)
    lost = 2.0**-21 * largest[:, : x.shape[1]] + 2.0**-21 * x.abs()
    allowed = lost.double() @ numbers.double().abs().T
    for fewest, most in COMPANIES:  # the bits of a row are the same alone and in company, as long as it is of a kind
        some = x[:most]
        products = native.product(some)
        worst = (products - exact[:most]).abs() - allowed[:most]
        assert float(worst.max()) <= 0, f"{float(worst.max())} more than the input's rounding, with {most} rows"
        for n in range(fewest, most):
            assert torch.equal(native.product(some[:n]), products[:n])
            assert torch.equal(native.product(some[-n:]), products[-n:])


def check_rows(product, x: torch.Tensor, products: torch.Tensor) -> None:
    """The bits of a row are the same alone and in any company."""
    for n in range(1, x.shape[0]):
        assert torch.equal(product(x[:n]), products[:n])
        assert torch.equal(product(x[n:]), products[n:])


# group columns, columns: odd sizes, groups that do and do not fit 64 columns, the last one shorter, one for a whole row
SIZES = [
    (32, 256),
    (64, 512),
    (128, 1024),
    (16, 128),
    (16, 320),
    (128, 384),
    (64, 200),
    (32, 104),
    (8, 104),
    (40, 96),
    (24, 72),
    (250, 250),
    (96, 1000),
]


@pytest.mark.parametrize("kind", ["middle", "zeros", "minima", *TABLES])
@pytest.mark.parametrize(("group", "columns"), SIZES)
def test_codes_of_4_bits(group, columns, kind):
    matrix = grouped(columns, group, 4, kind)
    check(matrix, matrix.decode(torch.float32))


@pytest.mark.parametrize("kind", ["signed", "zeros"])
@pytest.mark.parametrize(("group", "columns"), [*SIZES, (101, 101), (32, 35)])
def test_codes_of_8_bits(group, columns, kind):
    matrix = grouped(columns, group, 8, kind)
    check(matrix, matrix.decode(torch.float32))


@pytest.mark.parametrize("dtype", SCALES, ids=str)
@pytest.mark.parametrize("kind", ["middle", "minima", "any"])
def test_scales_of_any_dtype(dtype, kind):
    for group in (32, 64, 16):
        matrix = grouped(256, group, 4, kind, dtype)
        check(matrix, matrix.decode(torch.float32))


@pytest.mark.parametrize("name", BLOCK_NUMBERS)
def test_blocks_as_gguf_has_them(name):
    encoding = BLOCK_ENCODINGS[name]
    per_row = 11 if encoding.columns == 32 else 3
    blocks = random_blocks(name, ROWS * per_row, encoding.block_bytes, seed=len(name))
    numbers = torch.from_numpy(decode_reference(name, blocks)).view(ROWS, -1)
    check(BlockMatrix(encoding=encoding, data=torch.from_numpy(blocks).view(ROWS, -1)), numbers)


@pytest.mark.parametrize(
    ("columns", "group_rows", "group_columns"), [(256, 16, 128), (300, 1, 300), (301, ROWS, 301), (200, 128, 128)]
)
def test_float8(columns, group_rows, group_columns):
    numbers = torch.randn(ROWS, columns, generator=torch.Generator().manual_seed(1))
    codes = numbers.to(torch.float8_e4m3fn)
    every = torch.arange(127, dtype=torch.uint8)
    codes.view(torch.uint8)[0, :127], codes.view(torch.uint8)[1, :127] = every, every + 128
    scales = torch.rand(-(-ROWS // group_rows), -(-columns // group_columns)) - 0.3
    matrix = Float8Matrix(codes=codes, scales=scales, group_rows=group_rows, group_columns=group_columns)
    check(matrix, matrix.decode(torch.float32))


def test_float8_that_is_no_number_is_for_others():
    codes = torch.zeros(2, 32).to(torch.float8_e4m3fn)
    codes.view(torch.uint8)[1, 3] = 255
    assert native_form(Float8Matrix(codes=codes, scales=torch.ones(1, 1), group_rows=2, group_columns=32)) is None


@pytest.mark.parametrize("dtype", SCALES, ids=str)
@pytest.mark.parametrize("columns", [8, 77, 512, 1030])
def test_plain_numbers(dtype, columns):
    matrix = torch.randn(ROWS, columns, generator=torch.Generator().manual_seed(2)).to(dtype)
    native, x = native_dense(matrix), wild(INPUT_ROWS_MAX, columns)
    assert native is not None and torch.equal(native.decode(0, ROWS), matrix.float())
    products, numbers = native.product(x), matrix.double()
    lost = 2.0**-24 * columns**0.5 * 4 * (x.abs().double() @ numbers.abs().T)
    assert bool(((products - x.double() @ numbers.T).abs() <= lost).all())
    check_rows(native.product, x, products)


def test_the_number_of_threads_changes_no_bit(threads):
    matrix = torch.randn(997, 512, generator=torch.Generator().manual_seed(4))
    codes = torch.randint(0, 256, (997, 256), dtype=torch.uint8)
    forms = [native_dense(matrix), native_groups(codes, torch.rand(997, 16), bits=4, group_columns=32)]
    x = wild(5, 512)
    for native in forms:
        assert native is not None
        threads(1)
        alone = native.product(x), native.decode(0, 997)
        for n in (2, 3, 7):
            threads(n)
            assert torch.equal(native.product(x), alone[0]) and torch.equal(native.decode(0, 997), alone[1])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_spoils_its_row_and_no_other(wrong):
    native = native_form(grouped(256, 32, 4, "middle"))
    assert native is not None
    for n in (3, 7, 16):
        x = wild(n, 256)
        whole = native.product(x)
        x[1, 77] = wrong
        spoiled = native.product(x)
        assert not spoiled[1, 1:5].isfinite().any()
        assert torch.equal(spoiled[0], whole[0]) and torch.equal(spoiled[2:], whole[2:])


def test_what_it_has_no_way_for_is_left_to_others():
    codes, scales = torch.zeros(4, 64, dtype=torch.uint8), torch.ones(4, 13)
    assert native_groups(codes, scales, bits=4, group_columns=10) is None
    assert native_groups(codes, torch.ones(4, 4).double(), bits=4, group_columns=32) is None
    assert native_dense(torch.zeros(4, 4).double()) is None


def test_rows_that_are_not_there_are_not_looked_up():
    native = native_dense(torch.zeros(4, 8))
    assert native is not None
    for rows in ([4], [-1], [0, 9]):
        with pytest.raises(IndexError):
            native.decode_rows(torch.tensor(rows))
    assert native.decode_rows(torch.empty(0, dtype=torch.int64)).shape == (0, 8)
    assert native.product(torch.empty(0, 8)).shape == (0, 4)


@pytest.mark.long
@pytest.mark.parametrize(
    "flags", ["-DHYDRA_PLAIN", "-DHYDRA_PLAIN -fsanitize=undefined -fsanitize-undefined-trap-on-error"]
)
def test_plain_c_computes_the_same(tmp_path, library, flags):
    """As compiled where there is neither AVX2 nor NEON."""
    compiler = shutil.which("cc") or shutil.which("gcc") or "clang"
    plain = NativeBuild(tmp_path, {**os.environ, "CC": f"{compiler} {flags}"}).library()
    promise_library(lambda: plain)
    try:
        assert plain.lanes == "plain"
        for kind in ("middle", "zeros", "minima", *TABLES):
            for group, columns in SIZES:
                matrix = grouped(columns, group, 4, kind)
                check(matrix, matrix.decode(torch.float32))
        matrix = grouped(200, 64, 8, "signed")
        check(matrix, matrix.decode(torch.float32))
        for name in BLOCK_NUMBERS:
            test_blocks_as_gguf_has_them(name)
        test_plain_numbers(torch.float32, 77)
        test_float8(300, 1, 300)
    finally:
        promise_library(lambda: library)


@pytest.mark.parametrize("kind", ["middle", "minima"])
@pytest.mark.parametrize("groups", [1, 2, 3, 5, 9])
def test_nothing_is_read_behind_the_last_scale(groups: int, kind: str) -> None:
    """Scales and minima end where a page ends, and the next page may not be read."""
    columns = 32 * groups if groups % 2 == 0 else 64 * groups
    group = columns // groups
    page, libc = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True)
    ends: list[torch.Tensor] = []
    for _ in range(2):
        pages = mmap.mmap(-1, 2 * page)
        assert not libc.mprotect(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(pages)) + page), page, 0)
        count = ROWS * groups
        at_end = torch.frombuffer(pages, dtype=torch.float16, count=count, offset=page - 2 * count)
        ends.append(at_end.copy_(torch.rand(count)).view(ROWS, groups))
    codes = torch.randint(0, 256, (ROWS, columns // 2), dtype=torch.uint8)
    sides = {"minima": ends[1]} if kind == "minima" else {}
    matrix = GroupedMatrix(codes=codes, scales=ends[0], bits=4, group_columns=group, **sides)
    made = native_form(matrix)
    assert made is not None
    x = torch.randn(1, columns)
    torch.testing.assert_close(made.product(x), x @ matrix.decode(torch.float32).T, rtol=1e-3, atol=1e-2)
