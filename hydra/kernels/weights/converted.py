"""What a converter did to a published matrix, undone. Knows no file and no matrix's meaning."""

import torch
from torch import Tensor

from hydra.protocol.model.model_spec import Converted


def original_rows(rows: int, head_dim: int) -> Tensor:
    """For each row of a matrix the row that it became, int64 [rows]: within each head the converter put the two halves
    side by side in pairs, so that a rope can turn neighbours (llama.cpp's `permute`)."""
    if rows % head_dim or head_dim % 2:
        raise ValueError(f"{rows} rows are no heads of {head_dim} channels")
    pairs = torch.arange(rows).view(-1, head_dim // 2, 2)
    return pairs.transpose(1, 2).reshape(-1)


def undo(converted: Converted, numbers: Tensor, head_dim: int) -> Tensor:
    """The numbers as their maker had them. Raises ValueError for rows that are no heads."""
    match converted:
        case "":
            return numbers
        case "interleaved":
            return numbers[original_rows(numbers.shape[0], head_dim).to(numbers.device)]
        case "plus_one":
            return numbers - 1
        case "transposed":
            return numbers.view(numbers.shape[1], numbers.shape[0]).T
