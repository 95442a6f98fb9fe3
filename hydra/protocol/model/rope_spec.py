"""Rotary positions in numbers: which channels of a head are rotated, by what base, and how the angles are scaled."""

from typing import Literal

import attrs

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]


@attrs.frozen(kw_only=True)
class RopeSpec:
    """Rotary positions of the first `dim` channels of each head (Su et al., arXiv:2104.09864) and their scaling.

    Only the fields that `kind` names are looked at. `dynamic` and `longrope` depend on how long a row is, see
    `depends_on_length`. `attention_factor` multiplies cosine and sine. Queries, and not keys, are also multiplied by
    1 + query_growth * ln(1 + floor(position / original_max_positions)).
    """

    kind: RopeKind
    theta: float
    dim: int
    factor: float = 1.0  # linear, dynamic, llama3, yarn
    original_max_positions: int = 0  # dynamic, llama3, yarn, longrope, query_growth: the context of pretraining
    low_freq_factor: float = 0.0  # llama3
    high_freq_factor: float = 0.0  # llama3
    beta_fast: float = 0.0  # yarn
    beta_slow: float = 0.0  # yarn
    truncate: bool = True  # yarn
    short_factors: tuple[float, ...] = ()  # longrope, one per pair of channels
    long_factors: tuple[float, ...] = ()
    attention_factor: float = 1.0
    query_growth: float = 0.0

    @property
    def depends_on_length(self) -> bool:
        """Whether a token's rotation depends on more than its position."""
        return self.kind in ("dynamic", "longrope")
