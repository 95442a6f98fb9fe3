"""Blocks of every encoding decode to the very numbers that the `gguf` package decodes them to."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from hydra.kernels.weights.encoded.block_decoders import decode_blocks
from hydra.kernels.weights.encoded.encoded_matrix import BlockMatrix
from hydra.protocol.model.encoding import BLOCK_ENCODINGS

NAMES = sorted(BLOCK_ENCODINGS)
ROWS, BLOCKS = 5, 3
QUANTISED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")  # what the package can make as well


def reference(name: str, data: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return quants.dequantize(data, GGMLQuantizationType[name])


def any_bytes(name: str) -> np.ndarray:
    generator = np.random.default_rng(NAMES.index(name))
    return generator.integers(0, 256, (ROWS, BLOCKS * BLOCK_ENCODINGS[name].block_bytes), dtype=np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_mean_what_they_mean_there(name):
    """Scales of NaN, infinity and subnormal numbers are among random bytes: they are data."""
    data = any_bytes(name)
    expected, numbers = reference(name, data), decode_blocks(name, torch.from_numpy(data))
    assert numbers.dtype == torch.float32 and numbers.shape == expected.shape
    assert np.array_equal(numbers.numpy(), expected, equal_nan=True)
    assert np.isfinite(expected).any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("byte", [0x00, 0x3C, 0x7B, 0x80, 0xFF])
def test_extreme_blocks(name, byte):
    data = np.full((2, BLOCK_ENCODINGS[name].block_bytes), byte, dtype=np.uint8)
    numbers = decode_blocks(name, torch.from_numpy(data)).numpy()
    assert np.array_equal(numbers, reference(name, data), equal_nan=True)


@pytest.mark.parametrize("name", QUANTISED)
def test_what_the_package_quantised_is_read_back(name):
    numbers = np.random.default_rng(3).standard_normal((4, 96)).astype(np.float32)
    data = quants.quantize(numbers, GGMLQuantizationType[name])
    decoded = decode_blocks(name, torch.from_numpy(data)).numpy()
    assert np.array_equal(decoded, reference(name, data))
    assert np.abs(decoded - numbers).max() < 1.1


@pytest.mark.parametrize("name", ["Q6_K", "IQ4_XS"])
def test_rows_of_a_block_matrix(name):
    matrix = BlockMatrix(encoding=BLOCK_ENCODINGS[name], data=torch.from_numpy(any_bytes(name)))
    whole, picked = matrix.decode(torch.float32).numpy(), [4, 0, 4]
    chosen = matrix.take(torch.tensor(picked)).decode(torch.float32).numpy()
    assert np.array_equal(chosen, whole[picked], equal_nan=True)
    assert np.array_equal(matrix.take(slice(1, 3)).decode(torch.float32).numpy(), whole[1:3], equal_nan=True)
