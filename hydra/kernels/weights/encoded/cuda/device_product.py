"""The product that a device has for an encoded matrix, where it has one. Needs no Triton before it is asked of one."""

from typing import Protocol

import torch
from torch import Tensor

from hydra.kernels.devices import decodes_in_triton, multiplies_tiles, processors
from hydra.kernels.weights.encoded.cuda.tile_layout import tile_source
from hydra.kernels.weights.encoded.encoded_matrix import EncodedMatrix

ROWS_MAX = 64  # of input: for more it is faster to decode a piece of the matrix as a whole


class DeviceProduct(Protocol):
    """With one matrix, or with experts of as many rows each that lie one below the other in it. Launches do not wait
    for the host, so that they can be captured; the same launch computes the same bits."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, columns] of up to ROWS_MAX rows times the matrix's transpose: [n, rows]."""
        ...

    def by_expert(self, x: Tensor, experts: Tensor, origin: Tensor | None = None) -> Tensor:
        """[n, rows of an expert]: row i is row `origin[i]` of x (without `origin`, row i) times the transpose of the
        matrix of expert `experts[i]`. `experts` [n] ascends."""
        ...

    def decode(self, first: int, end: int, dtype: torch.dtype) -> Tensor:
        """Rows `first` to `end`, [rows, columns], as EncodedMatrix.decode has them."""
        ...


def device_product(matrix: EncodedMatrix, n_experts: int = 1) -> DeviceProduct | None:
    """None where the device has none for the form that the matrix has."""
    if not decodes_in_triton(matrix.device):
        return None
    source = tile_source(matrix)
    if source is None or (n_experts > 1 and source.order is not None):
        return None
    from hydra.kernels.weights.encoded.cuda.tile_product import TileProduct  # only where there is a Triton

    tiles = multiplies_tiles(matrix.device)
    return TileProduct(
        source, processors(matrix.device), multiplies_tiles=tiles, upcasts=not tiles, n_experts=n_experts
    )
