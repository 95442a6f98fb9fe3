"""The weights in this process's memory: whole parts by model and dtype, shared by every slice that uses them.

Knows nothing of routes; it is told what to keep, and forgets the rest at once.
"""

from collections.abc import Mapping
from typing import TypeAlias

from hydra.kernels.weights.part_weights import PartWeights
from hydra.protocol.messages.membership import Held
from hydra.protocol.model.dtype import Dtype
from hydra.protocol.model.layout import Part
from hydra.protocol.model.model_spec import Quantize

WeightsKey: TypeAlias = tuple[str, Quantize, Dtype]  # a model's weights as a route wants them; first its fingerprint
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
            Held(
                fingerprint=fingerprint,
                quantize=quantize,
                dtype=dtype,
                layers=tuple(sorted(part for part in parts if isinstance(part, int))),
            )
            for (fingerprint, quantize, dtype), parts in self._copies.items()
        )
