"""Published matrices for tests: tensors as a library stores them, given to the unpacker as a reader would."""

import numpy as np
import torch
from torch import Tensor

from hydra.kernels.weights.encoded.encoded_matrix import EncodedMatrix
from hydra.kernels.weights.encoded.unpack import unpack_matrix
from hydra.protocol.model.encoding import NAMED_ENCODINGS, Encoding, GroupEncoding, encoding_of

NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e8m0fnu: "F8_E8M0",
}
NAME = "model-00001.safetensors: layers.0.q_proj"


def raw_bytes(tensor: Tensor) -> Tensor:
    """As a reader hands them over: memory of their own."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).clone()


def grouped(encoding: str) -> GroupEncoding:
    known = encoding_of(encoding)
    assert isinstance(known, GroupEncoding)
    return known


def as_read(values: Tensor, **sides: Tensor) -> tuple[dict[str, Tensor], dict[str, tuple[Encoding, tuple[int, ...]]]]:
    raw = {"values": raw_bytes(values), **{name: raw_bytes(side) for name, side in sides.items()}}
    stored = {name: (NAMED_ENCODINGS[NAMES[side.dtype]], tuple(side.shape)) for name, side in sides.items()}
    return raw, stored


def unpacked(encoding: str, size: tuple[int, int], values: Tensor, **sides: Tensor) -> EncodedMatrix:
    return unpack_matrix(grouped(encoding), size, *as_read(values, **sides), name=NAME)


def words(codes: np.ndarray, bits: int) -> Tensor:
    """Along the last axis, the first code in the lowest bits; the last word is filled up with zeros."""
    each = 32 // bits
    rows, columns = codes.shape
    packed = np.zeros((rows, -(-columns // each)), dtype=np.uint32)
    for column in range(columns):
        packed[:, column // each] |= codes[:, column].astype(np.uint32) << np.uint32(column % each * bits)
    return torch.from_numpy(packed.view(np.int32))


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal numbers, NaN in the same places."""
    return (
        one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.nan_to_num(-7), other.nan_to_num(-7))
    )
