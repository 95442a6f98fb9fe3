"""What the bytes of GGUF's blocks mean, in plain torch operators. Knows no matrix and no product."""

import torch
from torch import Tensor

from hydra.protocol.model.encoding import BLOCK_ENCODINGS


def decode_blocks(name: str, data: Tensor) -> Tensor:
    """uint8 [rows, bytes of a row] in the block encoding of this name to float32 [rows, columns]."""
    encoding = BLOCK_ENCODINGS[name]
    blocks = data.view(-1, encoding.block_bytes)
    return _DECODERS[name](blocks).view(data.shape[0], -1)


def _q8_0(blocks: Tensor) -> Tensor:
    """A float16 scale, then 32 signed codes."""
    scales = blocks[:, :2].contiguous().view(torch.float16).to(torch.float32)
    return blocks[:, 2:].contiguous().view(torch.int8).to(torch.float32) * scales


_DECODERS = {"Q8_0": _q8_0}
