"""Rotary positions: frequencies by kind of scaling, tables per step, and the rotation of heads.

Halves are rotated against each other, as the published weights want it. Frequencies are computed in float32, step by
step as transformers does, because at position 100,000 the last bit of one is seen.

Two kinds depend on how long a row is. To be a function of the row alone, whatever the batch, the chunks of its prefill
or a replay, each token's length is fixed by what a row's opening says:

`dynamic` (NTK-aware): tokens of the client's prompt are rotated for the prompt's length, each later one for its own
position + 1. That is what transformers' generate does from a fresh model (its rotated keys stay in the cache); a replay
says the same prompt length, so it meets the same frequencies.

`longrope` (Ding et al., arXiv:2402.13753): all tokens of a row use the long factors if the row has more than
`original_max_positions` tokens, else the short ones. transformers' Phi-3 drops its cache when a generation grows past
that point and computes all of it again with the long factors; so must whoever runs a row here. `lengths` takes the
length from the row's opening and its position, and a row that grows past the point without having been opened again
is a fault.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hydra.kernels.native.row_functions import NativeRotation, native_rotation
from hydra.protocol.batch import Batch, OpenRow
from hydra.protocol.model.rope_spec import RopeSpec


@attrs.frozen(eq=False)
class RotaryTable:
    """The rotation of a step's tokens, in the slice's dtype."""

    cos: Tensor  # [n, 1, dim]
    signed_sin: Tensor  # [n, 1, dim]
    query_scale: Tensor | None = None  # [n, 1, 1]; None: 1


RotaryTables: TypeAlias = Sequence[RotaryTable]  # a slice's, each once
Turn: TypeAlias = Callable[[Tensor, RotaryTable], Tensor]  # heads [n, heads, head_dim], rotated; may overwrite them


@attrs.frozen(eq=False)
class Rotary:
    """One RopeSpec on one device."""

    spec: RopeSpec
    frequencies: Tensor  # [dim / 2] radians per position; for longrope those of the short factors
    long_frequencies: Tensor | None

    def tables(self, positions: Tensor, lengths: Tensor | None, dtype: torch.dtype) -> RotaryTable:
        """For tokens at these positions; `lengths` [n] int64 only where the spec depends on it."""
        angles = positions.to(torch.float32)[:, None] * self._of(lengths)
        cos, sin = angles.cos(), angles.sin()
        if self.spec.attention_factor != 1.0:
            cos, sin = cos * self.spec.attention_factor, sin * self.spec.attention_factor
        both = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        grown = self._query_scale(positions).to(dtype).view(-1, 1, 1) if self.spec.query_growth else None
        return RotaryTable(both[0].to(dtype).unsqueeze(1), both[1].to(dtype).unsqueeze(1), grown)

    def _query_scale(self, positions: Tensor) -> Tensor:
        """As Llama 4 and Ministral 3 keep attention sharp over long contexts."""
        contexts = torch.floor(positions / self.spec.original_max_positions)
        return 1 + self.spec.query_growth * torch.log(1 + contexts)

    def _of(self, lengths: Tensor | None) -> Tensor:
        """[dim / 2], or [n, dim / 2] where they differ by token."""
        if lengths is None:
            return self.frequencies
        beyond = (lengths > self.spec.original_max_positions)[:, None]
        grown = self.long_frequencies if self.long_frequencies is not None else _dynamic(self.spec, lengths)
        return torch.where(beyond, grown, self.frequencies)


def make_rotary(spec: RopeSpec, device: torch.device) -> Rotary:
    frequencies = _FREQUENCIES[spec.kind](spec)
    long = _factored(spec, spec.long_factors) if spec.kind == "longrope" else None
    return Rotary(spec, frequencies.to(device), None if long is None else long.to(device))


def lengths(spec: RopeSpec, batch: Batch, rows: Sequence[OpenRow]) -> npt.NDArray[np.int64]:
    """How long each token's row counts for its rotation, [n_tokens]. Raises RuntimeError, see the file's docstring."""
    counted: list[npt.NDArray[np.int64]] = []
    for row, position, length in zip(rows, batch.position.tolist(), batch.length.tolist(), strict=True):
        own = np.arange(position + 1, position + length + 1)
        if spec.kind == "dynamic":
            counted.append(np.maximum(own, np.where(own <= row.prompt_tokens, row.prompt_tokens, 0)))
            continue
        limit = spec.original_max_positions
        if row.history_tokens <= limit < position + length:
            raise RuntimeError(
                f"row {row.row} was opened with {row.history_tokens} tokens and has grown past {limit}: "
                "its keys hold the short factors"
            )
        counted.append(np.full(length, max(row.history_tokens, position + length)))
    return np.concatenate(counted)


# ---------------------------------------------------------------- frequencies


def _plain(spec: RopeSpec) -> Tensor:
    exponent = torch.arange(0, spec.dim, 2, dtype=torch.float32) / spec.dim
    return 1.0 / (spec.theta**exponent)


def _linear(spec: RopeSpec) -> Tensor:
    """Position interpolation, Chen et al., arXiv:2306.15595."""
    return _plain(spec) / spec.factor


def _dynamic(spec: RopeSpec, lengths: Tensor) -> Tensor:
    """[n, dim / 2]: the base grows with the length, so that the slowest pair spans it."""
    most = spec.original_max_positions
    reach = spec.factor * torch.clamp(lengths, min=most) / most - (spec.factor - 1)
    base = spec.theta * reach ** (spec.dim / (spec.dim - 2))
    exponent = torch.arange(0, spec.dim, 2, dtype=torch.float32, device=lengths.device) / spec.dim
    return 1.0 / (base[:, None] ** exponent)


def _llama3(spec: RopeSpec) -> Tensor:
    """Slow pairs are slowed by `factor`, fast ones kept, and between two wavelengths the two are blended."""
    plain, context = _plain(spec), spec.original_max_positions
    wavelength = 2 * math.pi / plain
    slow, fast = context / spec.low_freq_factor, context / spec.high_freq_factor
    scaled = torch.where(wavelength > slow, plain / spec.factor, plain)
    blend = (context / wavelength - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)
    blended = (1 - blend) * scaled / spec.factor + blend * scaled
    between = ~(wavelength < fast) * ~(wavelength > slow)
    return torch.where(between, blended, scaled)


def _yarn(spec: RopeSpec) -> Tensor:
    """Peng et al., arXiv:2309.00071: a linear ramp over the pairs, from kept to slowed by `factor`."""

    def pair_of(rotations: float) -> float:
        """The (fractional) pair that turns so often within the context of pretraining."""
        turns = spec.original_max_positions / (rotations * 2 * math.pi)
        return (spec.dim * math.log(turns)) / (2 * math.log(spec.theta))

    low, high = pair_of(spec.beta_fast), pair_of(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.dim - 1)
    if low == high:
        high += 0.001
    ramp = torch.clamp((torch.arange(spec.dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    period = spec.theta ** (torch.arange(0, spec.dim, 2).to(torch.float32) / spec.dim)
    kept = 1 - ramp
    return 1.0 / (spec.factor * period) * (1 - kept) + 1.0 / period * kept


def _factored(spec: RopeSpec, factors: tuple[float, ...]) -> Tensor:
    exponent = torch.arange(0, spec.dim, 2, dtype=torch.int64).to(torch.float32) / spec.dim
    return 1.0 / (torch.tensor(factors, dtype=torch.float32) * spec.theta**exponent)


_FREQUENCIES: dict[str, Callable[[RopeSpec], Tensor]] = {
    "default": _plain,
    "linear": _linear,
    "dynamic": _plain,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": lambda spec: _factored(spec, spec.short_factors),
}


# ---------------------------------------------------------------- rotation


def make_turn(*, whole: bool, dtype: torch.dtype, device: torch.device) -> Turn:
    """`whole`: the table is as wide as the heads."""
    compiled = native_rotation(dtype, device)
    return NativeTurn(compiled) if compiled is not None else rotate if whole else rotate_some


@attrs.frozen(eq=False)
class NativeTurn:
    """The compiled rotation, of whole heads or of their first channels."""

    rotation: NativeRotation

    def __call__(self, x: Tensor, table: RotaryTable) -> Tensor:
        return self.rotation(x, table.cos, table.signed_sin)


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Rotary embedding of [n, heads, dim]."""
    low, high = x.chunk(2, -1)
    return torch.addcmul(x * table.cos, torch.cat((high, low), -1), table.signed_sin)


def rotate_some(x: Tensor, table: RotaryTable) -> Tensor:
    """Of heads wider than the table, the first channels; the rest pass."""
    dim = table.cos.shape[-1]
    return torch.cat((rotate(x[..., :dim], table), x[..., dim:]), -1)
