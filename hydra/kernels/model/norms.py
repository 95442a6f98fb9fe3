"""Norms over the last side of a tensor, each bound to its weights once, at load.

A norm is a function of [..., width] that returns the same shape and dtype; means are taken in float32 whatever the
dtype. Knows no layer and no model.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from hydra.kernels.native.row_functions import native_rms_norm
from hydra.protocol.model.layer_spec import NormSpec

Norm: TypeAlias = Callable[[Tensor], Tensor]


def make_norm(spec: NormSpec, weight: Tensor, bias: Tensor | None) -> Norm:
    """`rms`: Zhang and Sennrich, arXiv:1910.07467; `layer`: Ba et al., arXiv:1607.06450."""
    if spec.kind == "layer":
        return _layer_norm(weight, bias, spec.eps)
    if spec.kind == "rms":
        return _rms_norm(weight, spec.eps)
    grown = weight.to(torch.float32) + 1.0
    return _rms_norm(grown, spec.eps) if weight.dtype == torch.float32 else _wide_rms_norm(grown, spec.eps)


def _rms_norm(weight: Tensor, eps: float) -> Norm:
    compiled = native_rms_norm(weight, eps)
    if compiled is not None:
        return compiled
    shape = weight.shape

    def norm(x: Tensor) -> Tensor:
        return functional.rms_norm(x, shape, weight, eps)

    return norm


def _wide_rms_norm(weight: Tensor, eps: float) -> Norm:
    """For a float32 weight on half-precision input: rounded once, behind the product."""
    wide = _rms_norm(weight, eps)

    def norm(x: Tensor) -> Tensor:
        return wide(x.to(torch.float32)).to(x.dtype)

    return norm


def _layer_norm(weight: Tensor, bias: Tensor | None, eps: float) -> Norm:
    shape = weight.shape

    def norm(x: Tensor) -> Tensor:
        return functional.layer_norm(x, shape, weight, bias, eps)

    return norm
