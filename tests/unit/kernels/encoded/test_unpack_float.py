"""float8, MXFP4, NVFP4 and nf4 decode to the numbers of their libraries and of their layouts' descriptions."""

import json

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import (
    FloatQuantizationCompressor,
    MXFP4PackedCompressor,
    NVFP4PackedCompressor,
)
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from hydra.protocol.refusal import RefusalError
from tests.unit.kernels.encoded.published import NAME, same_bits, unpacked

ROWS, COLUMNS = 24, 96
ANY_BYTES = torch.arange(256, dtype=torch.int32).to(torch.uint8)
FP8 = torch.float8_e4m3fn


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_bytes(*shape: int, seed: int = 1, end: int = 256) -> torch.Tensor:
    return torch.randint(0, end, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def weights(**args: object) -> QuantizationScheme:
    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(type="float", symmetric=True, **args))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(256, 384), (130, 200)])
def test_float8_in_blocks(rows, columns, dtype):
    how = weights(num_bits=8, strategy="block", block_structure=[128, 128])
    down, across = -(-rows // 128), -(-columns // 128)
    scale = (random(down, across).abs() + 0.1).to(dtype)
    state = {"weight": random(rows, columns, seed=2).to(dtype), "weight_scale": scale}
    stored = FloatQuantizationCompressor.compress(state, how)
    expected = FloatQuantizationCompressor.decompress(stored, how)["weight"]
    matrix = unpacked("float8:8:128x128", (rows, columns), stored["weight"], scale=scale)
    assert torch.equal(matrix.decode(dtype), expected)
    assert torch.equal(matrix.take(slice(100, 130)).decode(dtype), expected[100:130])
    picked = torch.tensor([129, 0, 128])
    assert torch.equal(matrix.take(picked).decode(dtype), expected[picked])


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.float8_e8m0fnu], ids=str)
def test_float8_in_blocks_as_transformers_reads_it(scale_dtype):
    """All 256 bytes, NaN among them."""
    codes = ANY_BYTES.repeat(256).view(256, 256).view(FP8)
    scale = torch.tensor([[0.5, 3.0], [1e-3, 64.0]]).to(scale_dtype)
    expected = Fp8Dequantize(None)._dequantize_one(codes, scale, torch.float32)
    matrix = unpacked("float8:8:128x128", (256, 256), codes, scale=scale)
    assert same_bits(matrix.decode(torch.float32), expected)


@pytest.mark.parametrize(
    ("strategy", "shape", "encoding"), [("channel", (ROWS, 1), "float8:8:1x0"), ("tensor", (1,), "float8:8:0x0")]
)
def test_float8_per_row_and_per_tensor(strategy, shape, encoding):
    how = weights(num_bits=8, strategy=strategy)
    scale = (random(*shape).abs() + 0.1).to(torch.bfloat16)
    stored = FloatQuantizationCompressor.compress({"weight": random(ROWS, COLUMNS), "weight_scale": scale}, how)
    expected = FloatQuantizationCompressor.decompress(stored, how)["weight"]
    for each in (scale, scale.squeeze()):
        matrix = unpacked(encoding, (ROWS, COLUMNS), stored["weight"], scale=each)
        assert torch.equal(matrix.decode(torch.bfloat16), expected)
        assert torch.equal(matrix.take(slice(2, 5)).decode(torch.bfloat16), expected[2:5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mxfp4_of_gpt_oss(dtype):
    """Every exponent, also those whose numbers are subnormal or infinite."""
    blocks, scales = random_bytes(256, 3, 16), ANY_BYTES.view(256, 1).repeat(1, 3)
    expected = convert_moe_packed_tensors(blocks[None], scales[None], dtype=dtype)[0].T.contiguous()
    matrix = unpacked("mxfp4:4:1x32", (256, COLUMNS), blocks, scale=scales)
    assert same_bits(matrix.decode(dtype), expected)
    as_type = unpacked("mxfp4:4:1x32", (256, COLUMNS), blocks, scale=scales.view(torch.float8_e8m0fnu))
    assert same_bits(as_type.decode(dtype), expected)


def test_mxfp4_of_compressed_tensors():
    how = weights(num_bits=4, strategy="group", group_size=32)
    scale = 2.0 ** torch.randint(-9, 9, (ROWS, 3), generator=torch.Generator().manual_seed(3))
    state = {"weight": random(ROWS, COLUMNS), "weight_scale": scale}
    stored = MXFP4PackedCompressor.compress(state, how)
    expected = MXFP4PackedCompressor.decompress(stored, how)["weight"]
    matrix = unpacked("mxfp4:4:1x32", (ROWS, COLUMNS), stored["weight_packed"], scale=stored["weight_scale"])
    assert torch.equal(matrix.decode(torch.bfloat16), expected.to(torch.bfloat16))


def test_nvfp4():
    """The divisor stands in the table, not in the scales: the last bit of a number may differ."""
    how = weights(num_bits=4, strategy="tensor_group", group_size=16)
    divisor = torch.tensor([2688.0 / 3.7])
    scale = (random(ROWS, 6).abs() * 300 + 1).clamp(max=448).to(FP8).float()
    state = {"weight": random(ROWS, COLUMNS), "weight_scale": scale, "weight_global_scale": divisor}
    stored = NVFP4PackedCompressor.compress(state, how)
    expected = NVFP4PackedCompressor.decompress(dict(stored), how)["weight"]
    sides = {"scale": stored["weight_scale"], "second_scale": divisor}
    matrix = unpacked("nvfp4:4:1x16", (ROWS, COLUMNS), stored["weight_packed"], **sides)
    decoded = matrix.decode(torch.bfloat16)
    steps = (decoded.view(torch.int16).int() - expected.view(torch.int16).int()).abs()
    assert expected.dtype == torch.bfloat16 and int(steps.max()) <= 1 and (steps > 0).sum() <= 2


def nf4_published(nested: bool, dtype: str = "bfloat16") -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Tensors as bitsandbytes saves them, and their numbers computed one by one from the description of its format."""
    generator = np.random.default_rng(4)
    rows, columns, group, nested_group = 10, 128, 64, 4
    codes = generator.integers(0, 16, rows * columns)
    table = np.linspace(-1, 1, 16).astype(np.float32) ** 3
    packed = (codes[0::2] << 4 | codes[1::2]).astype(np.uint8)
    count = rows * columns // group
    state = {"quant_type": "nf4", "blocksize": group, "dtype": dtype, "shape": [rows, columns]}
    sides = {"table": torch.from_numpy(table)}
    if nested:
        places, nested_table = generator.integers(0, 256, count), generator.standard_normal(256).astype(np.float32)
        nested_scales = generator.random(-(-count // nested_group)).astype(np.float32)
        offset = np.float32(0.0371)
        largest = [nested_table[p] * nested_scales[i // nested_group] + offset for i, p in enumerate(places)]
        state |= {"nested_blocksize": nested_group, "nested_dtype": "float32", "nested_offset": float(offset)}
        sides["scale"] = torch.from_numpy(places.astype(np.uint8))
        sides["second_scale"] = torch.from_numpy(nested_scales)
        sides["second_table"] = torch.from_numpy(nested_table)
    else:
        largest = generator.random(count).astype(np.float32)
        sides["scale"] = torch.from_numpy(largest)
    numbers = [table[code] * np.float32(largest[place // group]) for place, code in enumerate(codes)]
    sides["second_offset"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    expected = torch.from_numpy(np.array(numbers, dtype=np.float32).reshape(rows, columns))
    return {"values": torch.from_numpy(packed[:, None].copy()), **sides}, expected


@pytest.mark.parametrize("nested", [False, True])
def test_nf4(nested):
    stored, expected = nf4_published(nested)
    matrix = unpacked(f"nf4:4:1x64{':nested' if nested else ''}", (10, 128), **stored)
    assert torch.equal(matrix.decode(torch.float32), expected)
    if not nested:  # no number of it is needed then
        del stored["second_offset"]
        assert torch.equal(unpacked("nf4:4:1x64", (10, 128), **stored).decode(torch.float32), expected)


def state_of(stored: dict[str, torch.Tensor]) -> dict[str, object]:
    return json.loads(bytes(stored["second_offset"].tolist()))


@pytest.mark.parametrize(
    ("text", "code", "part"),
    [
        ("{", "bad_model", "its state in JSON is none"),
        ("[" * 4000, "bad_model", "its state in JSON is none"),
        ("[1]", "bad_model", "is no object"),
        ("x" * 4097, "bad_model", "4097 bytes"),
        ({"quant_type": "fp4"}, "unsupported", "'fp4'"),
        ({"shape": [128, 10]}, "bad_model", "shape [128, 10]"),
        ({"blocksize": 32}, "bad_model", "groups of 32, not of 64"),
        ({"blocksize": True}, "bad_model", "no blocksize"),
        ({"nested_offset": "0.1"}, "bad_model", "no finite nested_offset"),
        ({"nested_offset": float("nan")}, "bad_model", "no finite nested_offset"),
        ({"nested_blocksize": 0}, "bad_model", "no nested_blocksize"),
        ({"nested_blocksize": 5}, "bad_model", "scales of its scales: of shape (5,)"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_state_in_json_that_lies(text, code, part):
    stored, _ = nf4_published(nested=True)
    changed = text if isinstance(text, str) else json.dumps(state_of(stored) | text)
    stored["second_offset"] = torch.tensor(list(changed.encode()), dtype=torch.uint8)
    refusal(code, part, "nf4:4:1x64:nested", (10, 128), **stored)


def refusal(code: str, part: str, encoding: str, size: tuple[int, int], **stored: torch.Tensor) -> None:
    with pytest.raises(RefusalError) as caught:
        unpacked(encoding, size, **stored)
    message = caught.value.refusal.message
    assert caught.value.refusal.code == code and NAME in message and part in message, message


@pytest.mark.parametrize(
    ("encoding", "size", "code", "part", "side"),
    [
        ("nf4:4:1x64", (20, 64), "bad_model", "shape [10, 128]", {}),
        ("nf4:4:1x64", (40, 32), "bad_model", "shape [10, 128]", {}),
        ("nf4:4:1x64", (8, 160), "unsupported", "160 columns are no whole groups of 64", {}),
        ("nf4:4:1x64", (10, 128), "bad_model", "table: of shape (15,)", {"table": torch.zeros(15)}),
        ("nf4:4:1x64", (10, 128), "bad_model", "nf4 has no scales of its scales", {"second_scale": torch.zeros(5)}),
        ("nf4:4:1x64:nested", (10, 128), "bad_model", "scales: stored as F32, not as U8", {}),
        ("nf4:4:1x64", (10, 130), "bad_model", "take 650 bytes", {}),
    ],
)
def test_nf4_that_contradicts_itself(encoding, size, code, part, side):
    stored, _ = nf4_published(nested=False)
    if "nested" in encoding:
        state = state_of(stored) | {"nested_blocksize": 256, "nested_offset": 0.5}
        stored["second_offset"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    if size[1] % 64 and size[1] > 64:
        del stored["second_offset"]
    refusal(code, part, encoding, size, **(stored | side))


@pytest.mark.parametrize(
    ("encoding", "part", "sides"),
    [
        ("float8:8:128x128", "scales: of shape (1, 2); 24 x 96", {"scale": torch.ones(1, 2)}),
        ("float8:8:1x0", "scales: of shape (1,)", {"scale": torch.ones(1)}),
        ("float8:8:0x0", "scales: stored as U8", {"scale": torch.ones((), dtype=torch.uint8)}),
        ("mxfp4:4:1x32", "scales: stored as F32", {"scale": torch.ones(24, 3)}),
        ("nvfp4:4:1x16", "lacks its scales of its scales", {"scale": torch.ones(24, 6).to(FP8)}),
        ("nvfp4:4:1x16", "has no zero points", {"scale": torch.ones(24, 6).to(FP8), "zero": torch.ones(24, 6)}),
    ],
)
def test_sides_that_do_not_fit(encoding, part, sides):
    bits = int(encoding.split(":")[1])
    refusal("bad_model", part, encoding, (ROWS, COLUMNS), values=random_bytes(ROWS, COLUMNS * bits // 8), **sides)


def test_scales_that_are_not_finite_are_data():
    scale = torch.tensor([[float("nan")], [float("inf")]])
    decoded = unpacked("float8:8:1x0", (2, 4), torch.ones(2, 4).to(FP8), scale=scale).decode(torch.float32)
    assert decoded[0].isnan().all() and decoded[1].isinf().all()
