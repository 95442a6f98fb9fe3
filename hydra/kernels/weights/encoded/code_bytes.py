"""Codes in bytes: unpacked, paired, put into another order; always in pieces of a few rows, so that what is wide for a
moment stays small. Two codes of 4 bits make a byte, the first of them in its low half. Knows no scale.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from hydra.kernels.weights.encoded.block_decoders import bit_fields

PIECE_NUMBERS = 1 << 18  # worked on at once


def row_pieces(rows: int, columns: int, multiple: int = 1) -> Iterator[slice]:
    """Ranges of rows that together are all of them, each of a multiple of so many except for the last."""
    step = max(1, PIECE_NUMBERS // max(1, columns) // multiple) * multiple
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


def paired(codes: Tensor) -> Tensor:
    """uint8 [rows, columns] of 4 bits each to [rows, columns / 2]."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def code_per_byte(data: Tensor, bits: int) -> Tensor:
    """uint8 [rows, bytes] to one code per element, each byte's low half first."""
    return data if bits == 8 else bit_fields(data, 4, 1)


def paired_halves(runs: Tensor) -> Tensor:
    """GGUF's uint8 [n, 16], low halves before high halves, to the same 32 codes as pairs of neighbours."""
    first, second = runs[:, 0::2], runs[:, 1::2]
    return torch.cat(((first & 15) | (second << 4), (first >> 4) | (second & 240)), 1)


def with_columns(data: Tensor, bits: int, order: Tensor) -> Tensor:
    """uint8 [rows, bytes]: the columns with these indices, in their order."""
    reordered = torch.empty_like(data)
    for piece in row_pieces(data.shape[0], data.shape[1] * 8 // bits):
        codes = code_per_byte(data[piece], bits).index_select(1, order)
        reordered[piece] = codes if bits == 8 else paired(codes)
    return reordered
