"""Raw bytes of a published matrix to the form that is computed with. Knows no file."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hydra.kernels.weights.encoded.encoded_matrix import EncodedMatrix, GroupedMatrix
from hydra.protocol.model.encoding import Encoding, GroupEncoding
from hydra.protocol.model.model_spec import WeightSide
from hydra.protocol.refusal import refuse

UNPACKED_BLOCKS = frozenset({"Q8_0"})


def unpack_blocks(name: str, data: Tensor) -> GroupedMatrix:
    """uint8 [rows, bytes of a row]."""
    blocks = data.view(data.shape[0], -1, 34)
    scales = blocks[:, :, :2].contiguous().view(torch.float16).squeeze(-1)
    codes = blocks[:, :, 2:].contiguous().view(torch.int8).view(data.shape[0], -1)
    return GroupedMatrix(codes=codes, scales=scales, bits=8, group_columns=32)


def unpack_matrix(
    encoding: GroupEncoding,
    shape: tuple[int, int],
    raw: Mapping[WeightSide, Tensor],
    sides: Mapping[WeightSide, tuple[Encoding, tuple[int, ...]]],
) -> EncodedMatrix:
    raise refuse("unsupported", f"{encoding.name} is not read yet")
