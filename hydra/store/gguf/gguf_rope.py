"""Rotary positions as GGUF metadata and tensors give them, in the words of config.json.

Promises: what it returns turns by the same angles as the file says; factors that no kind of scaling is known to make
are refused by name. Refuses to know which family asks.
"""

import math
from typing import Any

import numpy as np

from hydra.protocol.refusal import refuse
from hydra.store.gguf.arch_keys import ArchKeys
from hydra.store.gguf.gguf_metadata import shortest

ROPE_FREQS, ROPE_LONG, ROPE_SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
ROPE_TENSORS = frozenset((ROPE_FREQS, ROPE_LONG, ROPE_SHORT))
FACTOR_MAX, THETA_MAX, POSITIONS_MAX = 1e6, 1e12, 1 << 24
LLAMA3_LOW, LLAMA3_HIGH, LLAMA3_ORIGINAL = 1.0, 4.0, 8192  # of all published models of this kind
TOLERANCE = 1e-5  # of a factor that was computed in 32 bits


def rope_parameters(keys: ArchKeys, head_dim: int) -> dict[str, Any]:
    """`rope_parameters` of config.json."""
    theta = keys.number("rope.freq_base", THETA_MAX, 10_000.0)
    dim = keys.integer("rope.dimension_count", 2, 4096, head_dim)
    parameters: dict[str, Any] = {"rope_theta": theta, **_scaling(keys, theta, dim)}
    if dim != head_dim:
        parameters["partial_rotary_factor"] = dim / head_dim
    return parameters


def _scaling(keys: ArchKeys, theta: float, dim: int) -> dict[str, Any]:
    tensors = keys.content.tensors
    kind = keys.text("rope.scaling.type", "longrope" if ROPE_LONG in tensors else "none")
    if ROPE_FREQS in tensors:
        if kind != "none":
            raise keys.unsupported("rope.scaling.type", f"'none' beside {ROPE_FREQS}")
        return _llama3(keys, theta, dim)
    match kind:
        case "none":
            return {"rope_type": "default"}
        case "linear":
            return {"rope_type": "linear", "factor": _factor(keys)}
        case "yarn":
            return _yarn(keys)
        case "longrope" if ROPE_LONG in tensors and ROPE_SHORT in tensors:
            return _longrope(keys)
        case _:
            raise keys.unsupported("rope.scaling.type", "'none', 'linear', 'yarn' or 'longrope' with its factors")


def _factor(keys: ArchKeys) -> float:
    """Its older key is that of files without a type."""
    return keys.number("rope.scaling.factor", FACTOR_MAX)


def _yarn(keys: ArchKeys) -> dict[str, Any]:
    found = {
        "rope_type": "yarn",
        "factor": _factor(keys),
        "original_max_position_embeddings": keys.integer("rope.scaling.original_context_length", 2, POSITIONS_MAX),
    }
    for key, name in (("attn_factor", "attention_factor"), ("beta_fast", "beta_fast"), ("beta_slow", "beta_slow")):
        if keys.has(f"rope.scaling.yarn_{key}"):
            found[name] = keys.number(f"rope.scaling.yarn_{key}", FACTOR_MAX)
    return found


def _longrope(keys: ArchKeys) -> dict[str, Any]:
    original = keys.integer("rope.scaling.original_context_length", 2, POSITIONS_MAX)
    found: dict[str, Any] = {
        "rope_type": "longrope",
        "original_max_position_embeddings": original,
        "long_factor": list(keys.content.vector(ROPE_LONG)),
        "short_factor": list(keys.content.vector(ROPE_SHORT)),
    }
    factor = keys.integer("context_length", 1, POSITIONS_MAX) / original
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    if keys.has("rope.scaling.attn_factor"):
        scale = keys.number("rope.scaling.attn_factor", FACTOR_MAX)
        if scale != shortest(float(np.float32(usual))):
            found["attention_factor"] = scale
    return found


def _llama3(keys: ArchKeys, theta: float, dim: int) -> dict[str, Any]:
    """The parameters whose factors these are."""
    stored = keys.content.vector(ROPE_FREQS)
    factor = max(stored, default=1.0)
    if math.isclose(factor, round(factor), rel_tol=TOLERANCE):
        factor = float(round(factor))
    original = keys.integer("rope.scaling.original_context_length", 2, POSITIONS_MAX, LLAMA3_ORIGINAL)
    made = _llama3_factors(theta, dim, factor, original)
    if len(made) != len(stored) or not np.allclose(made, stored, rtol=TOLERANCE, atol=0):
        raise refuse(
            "unsupported",
            f"{ROPE_FREQS} of the GGUF file {keys.content.file} does not hold the factors of rope type 'llama3' with a "
            f"context of {original}, low {LLAMA3_LOW:g} and high {LLAMA3_HIGH:g}; others are not supported.",
        )
    if factor == 1.0:
        return {"rope_type": "default"}
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LLAMA3_LOW,
        "high_freq_factor": LLAMA3_HIGH,
        "original_max_position_embeddings": original,
    }


def _llama3_factors(theta: float, dim: int, factor: float, original: int) -> list[float]:
    """By how much the angle of each pair of channels is divided."""
    factors: list[float] = []
    for channel in range(0, dim, 2):
        turns = original / (2 * math.pi) * theta ** (-channel / dim)  # within the context of pretraining
        smooth = min(max((turns - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors
