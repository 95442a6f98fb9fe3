"""Rows of a matrix looked up by number, plain or encoded. Knows no token's meaning."""

from typing import Protocol

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from hydra.kernels.weights.encoded.encoded_linear import EncodedLinear
from hydra.kernels.weights.part_weights import PartWeights


class Embedding(Protocol):
    """Ids of tokens (int64 [n]) to hidden states [n, hidden]."""

    def __call__(self, ids: Tensor) -> Tensor: ...


@attrs.frozen(eq=False)
class PlainEmbedding:
    matrix: Tensor  # [vocab, hidden]

    def __call__(self, ids: Tensor) -> Tensor:
        return functional.embedding(ids, self.matrix)


@attrs.frozen(eq=False)
class EncodedEmbedding:
    """Only the rows that are looked up are decoded."""

    matrix: EncodedLinear
    dtype: torch.dtype

    def __call__(self, ids: Tensor) -> Tensor:
        return self.matrix.look_up(ids.to(torch.int64), self.dtype)


def make_embedding(weights: PartWeights, dtype: torch.dtype) -> Embedding:
    """Of the part that is the embedding."""
    encoded = weights.encoded.get("embedding")
    return (
        PlainEmbedding(weights.tensors["embedding"])
        if encoded is None
        else EncodedEmbedding(EncodedLinear(encoded), dtype)
    )
