"""Packed integers, GPTQ, AWQ and int8 decode to the numbers of their libraries and of their layouts' descriptions."""

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import IntQuantizationCompressor, PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from hydra.protocol.refusal import RefusalError
from tests.unit.kernels.encoded.published import NAME, unpacked, words

ROWS, COLUMNS = 24, 96


def scheme(bits: int, group: int | None, symmetric: bool, **more: object) -> QuantizationScheme:
    strategy = "group" if group else "channel"
    weights = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy=strategy, group_size=group)
    return QuantizationScheme(targets=["Linear"], weights=weights, **more)


def made(bits: int, group: int | None, symmetric: bool, dtype: torch.dtype, columns: int = COLUMNS) -> dict:
    """A random weight with random scales and zero points, for a compressor."""
    generator = torch.Generator().manual_seed(bits * 1000 + columns)
    groups = columns // group if group else 1
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    scale = (torch.rand(ROWS, groups, generator=generator) * 0.1 + 0.01).to(dtype)
    state = {"weight": torch.randn(ROWS, columns, generator=generator).to(dtype), "weight_scale": scale}
    if not symmetric:
        zero = torch.randint(low, high + 1, (ROWS, groups), generator=generator).to(torch.int8)
        zero[0], zero[1] = low, high
        state["weight_zero_point"] = zero
    return state


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("bits", "group", "columns"), [(4, 32, 96), (8, 32, 96), (4, None, 96), (8, 16, 48), (4, 20, 60)]
)
def test_what_compressed_tensors_packs(bits, group, columns, symmetric, dtype):
    how = scheme(bits, group, symmetric)
    stored = PackedQuantizationCompressor.compress(made(bits, group, symmetric, dtype, columns), how)
    expected = PackedQuantizationCompressor.decompress(stored, how)["weight"]
    sides = {"scale": stored["weight_scale"], "shape": stored["weight_shape"]}
    if not symmetric:
        sides["zero"] = stored["weight_zero_point"]
    name = f"packed:{bits}:1x{group or 0}{'' if symmetric else ':stored'}"
    matrix = unpacked(name, (ROWS, columns), stored["weight_packed"], **sides)
    assert torch.equal(matrix.decode(dtype), expected) and (matrix.zeros is None) == symmetric
    assert torch.equal(matrix.take(slice(3, 9)).decode(dtype), expected[3:9])
    picked = torch.tensor([23, 0, 5])
    assert torch.equal(matrix.take(picked).decode(dtype), expected[picked])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [None, 32])
def test_what_compressed_tensors_stores_as_int8(group, symmetric):
    how = scheme(8, group, symmetric)
    stored = IntQuantizationCompressor.compress(made(8, group, symmetric, torch.bfloat16), how)
    expected = IntQuantizationCompressor.decompress(stored, how)["weight"]
    sides = {"scale": stored["weight_scale"]} | ({} if symmetric else {"zero": stored["weight_zero_point"]})
    name = f"int8:8:1x{group or 0}{'' if symmetric else ':stored'}"
    matrix = unpacked(name, (ROWS, COLUMNS), stored["weight"], **sides)
    assert torch.equal(matrix.decode(torch.bfloat16), expected)
    assert matrix.codes.dtype == (torch.int8 if symmetric else torch.uint8)


def test_one_scale_for_all_rows():
    codes = torch.arange(-64, 64, dtype=torch.int8).view(4, 32)
    scale = torch.tensor([0.5], dtype=torch.float16)
    assert torch.equal(unpacked("int8:8:0x0", (4, 32), codes, scale=scale).decode(torch.float32), codes * 0.5)


class Grouped:
    """Codes, zero points and scales as GPTQ and AWQ have them: [columns, rows] and [groups, rows]."""

    def __init__(self, bits: int, group: int, columns: int = COLUMNS, rows: int = ROWS, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.bits, self.groups = bits, -(-columns // group)
        self.codes = generator.integers(0, 1 << bits, (columns, rows))
        self.zeros = generator.integers(1, 1 << bits, (self.groups, rows))
        self.scales = generator.standard_normal((self.groups, rows)).astype(np.float16)  # of both signs
        self.index = np.arange(columns) // group

    @property
    def numbers(self) -> torch.Tensor:
        """scale * (code - zero), [rows, columns], rounded as the scales are."""
        exact = self.scales.astype(np.float64)[self.index] * (self.codes - self.zeros[self.index])
        return torch.from_numpy(exact.astype(np.float32).astype(np.float16).T.copy())

    def gptq(self, less: int) -> dict[str, torch.Tensor]:
        return {
            "values": words(self.codes.T, self.bits).T.contiguous(),
            "zero": words(self.zeros - less, self.bits),
            "scale": torch.from_numpy(self.scales),
        }


@pytest.mark.parametrize(("bits", "group", "columns", "rows"), [(4, 32, 96, 24), (8, 32, 96, 24), (4, 64, 96, 20)])
@pytest.mark.parametrize("zero", ["less_one", "stored"])
def test_gptq(bits, group, columns, rows, zero):
    """A smaller last group, rows that fill no whole word of zero points, and AutoRound's negative scales as well."""
    made = Grouped(bits, group, columns, rows)
    stored = made.gptq(1 if zero == "less_one" else 0)
    matrix = unpacked(f"gptq:{bits}:1x{group}:{zero}", (rows, columns), **stored)
    assert torch.equal(matrix.decode(torch.float16), made.numbers) and matrix.order is None
    assert matrix.zeros is not None and (made.scales < 0).any()
    index = torch.from_numpy(made.index.astype(np.int32))
    again = unpacked(f"gptq:{bits}:1x{group}:{zero}", (rows, columns), **stored, order=index)
    assert again.order is None and torch.equal(again.codes, matrix.codes)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_middle_as_zero_of_all_groups_is_dropped(bits):
    made = Grouped(bits, 32)
    made.zeros[:] = 1 << (bits - 1)
    matrix = unpacked(f"gptq:{bits}:1x32:less_one", (ROWS, COLUMNS), **made.gptq(1))
    assert matrix.zeros is None and torch.equal(matrix.decode(torch.float16), made.numbers)


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_with_groups_of_columns_far_apart(bits):
    made = Grouped(bits, 32, columns=80)  # the last group has 16
    np.random.default_rng(5).shuffle(made.index)
    index = torch.from_numpy(made.index.astype(np.int32))
    matrix = unpacked(f"gptq:{bits}:1x32:stored:ordered", (ROWS, 80), **made.gptq(0), order=index)
    assert sorted(matrix.order.tolist()) == list(range(80))
    assert torch.equal(matrix.decode(torch.float16), made.numbers)
    assert torch.equal(matrix.take(torch.tensor([7, 2])).decode(torch.float16), made.numbers[[7, 2]])


def test_a_row_that_is_one_group_has_no_order():
    """Also where the model says that it has, and the index is not handed on."""
    made = Grouped(4, COLUMNS)
    index = torch.zeros(COLUMNS, dtype=torch.int32)
    for sides in ({}, {"order": index}):
        matrix = unpacked("gptq:4:1x0:stored:ordered", (ROWS, COLUMNS), **made.gptq(0), **sides)
        assert matrix.order is None and torch.equal(matrix.decode(torch.float16), made.numbers)
    refusal(
        "bad_model",
        "column 3 in group 1 of 1",
        encoding="gptq:4:1x0:stored",
        **made.gptq(0),
        order=index + (torch.arange(COLUMNS, dtype=torch.int32) == 3),
    )


def test_packed_with_groups_of_columns_far_apart():
    """As compressed-tensors stored it until it dropped the group index: columns as they are, scales by group."""
    made = Grouped(4, 32)
    made.zeros[:] = 8
    np.random.default_rng(6).shuffle(made.index)
    sides = {"scale": torch.from_numpy(made.scales.T.copy()), "order": torch.from_numpy(made.index.astype(np.int32))}
    matrix = unpacked("packed:4:1x32:ordered", (ROWS, COLUMNS), words(made.codes.T, 4), **sides)
    assert matrix.order is not None and torch.equal(matrix.decode(torch.float16), made.numbers)
    made.index = np.arange(COLUMNS) // 32
    sides["order"] = torch.full((COLUMNS,), -1, dtype=torch.int32)  # it never put them into an order
    matrix = unpacked("packed:4:1x32:ordered", (ROWS, COLUMNS), words(made.codes.T, 4), **sides)
    assert matrix.order is None and torch.equal(matrix.decode(torch.float16), made.numbers)


def awq_words(codes: np.ndarray) -> torch.Tensor:
    """Nibble p of a word holds the row [0, 2, 4, 6, 1, 3, 5, 7][p] of its eight."""
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])
    return words(codes.reshape(codes.shape[0], -1, 8)[:, :, order].reshape(codes.shape), 4)


@pytest.mark.parametrize("columns", [96, 34])
def test_awq(columns):
    made = Grouped(4, 32, columns)
    sides = {"zero": awq_words(made.zeros), "scale": torch.from_numpy(made.scales)}
    matrix = unpacked("awq:4:1x32:stored", (ROWS, columns), awq_words(made.codes), **sides)
    assert torch.equal(matrix.decode(torch.float16), made.numbers)


def refusal(code: str, *parts: str, **call: object) -> None:
    with pytest.raises(RefusalError) as caught:
        unpacked(call.pop("encoding"), call.pop("size", (ROWS, COLUMNS)), **call)
    assert caught.value.refusal.code == code
    assert all(part in caught.value.refusal.message for part in (NAME, *parts)), caught.value.refusal.message


def test_a_group_index_that_lies_or_has_no_order():
    made = Grouped(4, 32)
    index = torch.from_numpy(made.index.astype(np.int32))
    stored = {"encoding": "gptq:4:1x32:stored:ordered", **made.gptq(0)}
    for column, group in ((5, 3), (95, -1)):
        wrong = index.clone()
        wrong[column] = group
        refusal("bad_model", f"puts column {column} in group {group} of 3", order=wrong, **stored)
    unequal = index.clone()
    unequal[0] = 2
    refusal("unsupported", "31 columns in group 0", order=unequal, **stored)
    refusal("bad_model", "lacks its group index", **stored)
    refusal("bad_model", "group index: of shape (95,)", order=index[:95], **stored)


def test_zero_points_that_are_none():
    made = Grouped(4, 32)
    made.zeros[2, 7] = 16  # stored as 15
    refusal("bad_model", "stored as 15", "beyond 4 bits", encoding="gptq:4:1x32:less_one", **made.gptq(1))
    stored = made.gptq(1)
    del stored["zero"]
    refusal("bad_model", "lacks its zero points", encoding="gptq:4:1x32:stored", **stored)


@pytest.mark.parametrize(
    ("encoding", "code", "parts", "changes"),
    [
        ("packed:4:1x32", "bad_model", ["stored shape is [24, 95]"], {"shape": torch.tensor([24, 95])}),
        ("packed:4:1x32", "bad_model", ["take 1152 bytes", "1148"], {"values": torch.zeros(287, dtype=torch.int32)}),
        ("packed:4:1x32", "bad_model", ["scales: stored as I32"], {"scale": torch.zeros(24, 3, dtype=torch.int32)}),
        ("packed:4:1x32", "bad_model", ["scales: of shape (24, 4)", "(24, 3)"], {"scale": torch.ones(24, 4)}),
        ("packed:4:1x32", "bad_model", ["lacks its scales"], {"scale": None}),
        ("packed:4:1x32", "bad_model", ["has no zero points"], {"zero": torch.zeros(3, 3, dtype=torch.int32)}),
        ("awq:8:1x32:stored", "unsupported", ["awq:8", "4 bits"], {}),
        ("awq:4:1x32:stored", "unsupported", ["20 rows", "words of eight"], {"rows": 20}),
        ("gptq:4:1x32:stored", "unsupported", ["92 columns of 4 bits are no whole words"], {"columns": 92}),
        ("packed:4:1x32", "unsupported", ["no whole bytes"], {"columns": 95}),
    ],
)
def test_refusals(encoding, code, parts, changes):
    rows, columns = changes.pop("rows", ROWS), changes.pop("columns", COLUMNS)
    call = {"values": torch.zeros(rows * columns // 8, dtype=torch.int32), "scale": torch.ones(rows, 3), **changes}
    refusal(code, *parts, encoding=encoding, size=(rows, columns), **{k: v for k, v in call.items() if v is not None})
