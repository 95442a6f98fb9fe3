"""The weights in this process's memory: whole parts by model and dtype, shared by every slice that uses them.

Knows nothing of routes; it is told what to keep, and forgets the rest at once.
"""

from collections.abc import Mapping
from typing import TypeAlias

from hydra.kernels.weights.part_weights import PartWeights
from hydra.protocol.messages.membership import Held
from hydra.protocol.model.dtype import Dtype
from hydra.protocol.model.layout import Part

WeightsKey: TypeAlias = tuple[str, Dtype]  # one model's weights in one dtype: fingerprint and dtype
Claims: TypeAlias = Mapping[WeightsKey, frozenset[Part]]


class ResidentWeights:
    """Parts are complete or absent."""

    def __init__(self) -> None:
        self._copies: dict[WeightsKey, dict[Part, PartWeights]] = {}

    def keep_only(self, claims: Claims) -> None:
        """Forgets whatever no claim names."""
        self._copies = {
            copy: kept
            for copy, parts in self._copies.items()
            if (kept := {part: weights for part, weights in parts.items() if part in claims.get(copy, ())})
        }

    def put(self, copy: WeightsKey, parts: Mapping[Part, PartWeights]) -> None:
        self._copies.setdefault(copy, {}).update(parts)

    def parts(self, copy: WeightsKey) -> Mapping[Part, PartWeights]:
        return self._copies.get(copy, {})

    @property
    def n_bytes(self) -> int:
        return sum(weights.n_bytes for parts in self._copies.values() for weights in parts.values())

    def held(self) -> tuple[Held, ...]:
        return tuple(
            Held(fingerprint=copy[0], dtype=copy[1], layers=tuple(sorted(p for p in parts if isinstance(p, int))))
            for copy, parts in self._copies.items()
        )
