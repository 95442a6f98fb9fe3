"""What a config says of rotary positions, in its old spelling (`rope_scaling`) or its new one (`rope_parameters`).

Promises: the RopeSpec it returns says everything; defaults are those of transformers, and a key that the kind of
scaling does not know is refused by name. Refuses to know which family asks, beyond what it is told in RopeDefaults.
"""

import math
from typing import get_args

import attrs

from hydra.protocol.model.rope_spec import RopeKind, RopeSpec
from hydra.store.files.directory import shown
from hydra.store.models.config_values import Values

POSITIONS_MAX = 2**24  # as far as float32, in which positions are rotated, tells one from the next
THETA_MAX = 1e12
FACTOR_MAX = 1e6
COMMON_KINDS: tuple[RopeKind, ...] = ("default", "linear", "dynamic", "llama3", "yarn")

_SPELLINGS: dict[str, RopeKind] = {**{kind: kind for kind in get_args(RopeKind)}, "su": "longrope"}
_COMMON_KEYS = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"})
_KEYS: dict[RopeKind, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
    "yarn": frozenset(
        {
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        }
    ),
    "longrope": frozenset(
        {"factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"}
    ),
}


@attrs.frozen(kw_only=True)
class RopeDefaults:
    """What a family has of its own: kinds it may use, its default base, the share of a head that it rotates."""

    kinds: tuple[RopeKind, ...] = COMMON_KINDS
    theta: float = 10_000.0
    partial: bool = False  # whether a head may be rotated in part
    share: float = 1.0  # of a head, where the config is silent
    original_max_positions: int | None = None  # where the config is silent; None: what max_position_embeddings says
    sections: bool = False  # whether channels are divided among time, height and width: all the same for text
    growing_queries: bool = False  # whether queries may grow with their position


def read_rope(config: Values, habits: RopeDefaults, head_dim: int, max_positions: int) -> RopeSpec:
    """The one rope of a whole model. Raises RefusalError: bad_model, unsupported."""
    old, new = config.nested("rope_scaling"), config.nested("rope_parameters")
    scaling = old if old is not None and old.keys() else new  # as in transformers, the old spelling replaces the new
    return rope_of(scaling or Values({}, config.file), config, habits, head_dim, max_positions)


def rope_of(scaling: Values, config: Values, habits: RopeDefaults, head_dim: int, max_positions: int) -> RopeSpec:
    """`scaling` is the rope's own object; what it leaves open `config` may say."""
    kind = _kind(scaling, habits)
    unknown = sorted(scaling.keys() - _COMMON_KEYS - _KEYS[kind] - _own_keys(habits))
    if unknown:
        raise scaling.unsupported(f"a key of rope type {kind!r}", unknown[0], "what this type of scaling is made of")
    source = scaling if scaling.has("rope_theta") else config
    plain = RopeSpec(
        kind=kind,
        theta=source.number("rope_theta", THETA_MAX, habits.theta),
        dim=_dim(scaling, config, habits, head_dim),
    )
    match kind:
        case "linear":
            return attrs.evolve(plain, factor=scaling.number("factor", FACTOR_MAX))
        case "dynamic":
            if plain.dim <= 2:
                raise scaling.bad(f"dynamic scaling needs more than {plain.dim} rotated channels")
            factor = scaling.number("factor", FACTOR_MAX)
            return attrs.evolve(plain, factor=factor, original_max_positions=max_positions)
        case "llama3":
            return _llama3(plain, scaling, _original(scaling, config, habits, max_positions))
        case "yarn":
            yarn = _yarn(plain, scaling, _original(scaling, config, habits, max_positions))
            return attrs.evolve(yarn, query_growth=_query_growth(scaling)) if habits.growing_queries else yarn
        case "longrope":
            return _longrope(plain, scaling, _original(scaling, config, habits, max_positions), max_positions)
        case _:
            return plain


def _own_keys(habits: RopeDefaults) -> frozenset[str]:
    sections = {"mrope_section", "mrope_interleaved"} if habits.sections else set()
    growth = {"llama_4_scaling_beta", "max_position_embeddings"} if habits.growing_queries else set()
    return frozenset(sections | growth)


def _query_growth(scaling: Values) -> float:
    key = "llama_4_scaling_beta"
    return scaling.number(key, FACTOR_MAX, zero=True) if scaling.has(key) else 0.0


def reach(rope: RopeSpec, max_positions: int) -> int:
    """Positions that this rope is made for, where max_position_embeddings is `max_positions`.

    The rule is vLLM's (`_get_and_verify_max_len`). linear and dynamic stretch max_position_embeddings, which is the
    context of pretraining there. yarn stretches original_max_position_embeddings: published configs keep
    max_position_embeddings as it was or state it stretched, so it is never stretched again, and the greater counts.
    llama3 and longrope configs state it stretched.
    """
    match rope.kind:
        case "linear" | "dynamic":
            stretched = int(max_positions * rope.factor)
        case "yarn":
            stretched = max(max_positions, int(rope.original_max_positions * rope.factor))
        case _:
            stretched = max_positions
    return max(1, min(stretched, POSITIONS_MAX))


def _kind(scaling: Values, habits: RopeDefaults) -> RopeKind:
    spelled = scaling.get("rope_type") if scaling.has("rope_type") else scaling.get("type")
    kind = "default" if spelled is None else _SPELLINGS.get(spelled) if isinstance(spelled, str) else None
    if kind is None or kind not in habits.kinds:
        raise scaling.unsupported("rope type", spelled, " or ".join(repr(known) for known in habits.kinds))
    return kind


def _dim(scaling: Values, config: Values, habits: RopeDefaults, head_dim: int) -> int:
    key = "partial_rotary_factor"
    if scaling.has(key) and config.has(key) and scaling.get(key) != config.get(key):
        raise scaling.bad(f"{key} is {shown(scaling.get(key))}, but {shown(config.get(key))} for the model")
    source = scaling if scaling.has(key) else config
    share = source.number(key, 1.0, habits.share)
    if share != 1.0 and not habits.partial:
        raise source.unsupported(key, share, "1")
    dim = int(head_dim * share)
    if dim < 2 or dim % 2:
        raise source.bad(f"{key} {share:g} of head_dim {head_dim} is no even number of channels")
    return dim


def _original(scaling: Values, config: Values, habits: RopeDefaults, max_positions: int) -> int:
    """The context of pretraining: a value of the config itself goes before one of the rope's own object."""
    key = "original_max_position_embeddings"
    inner = scaling.integer(key, POSITIONS_MAX, least=2) if scaling.has(key) else None
    outer = config.integer(key, POSITIONS_MAX, least=2) if config.has(key) else habits.original_max_positions
    if inner is not None and outer is not None and inner != outer:
        raise scaling.bad(f"{key} is {inner}, but {outer} for the model")
    return outer or inner or max_positions


def _llama3(plain: RopeSpec, scaling: Values, original: int) -> RopeSpec:
    low = scaling.number("low_freq_factor", FACTOR_MAX)
    high = scaling.number("high_freq_factor", FACTOR_MAX)
    if high <= low:
        raise scaling.bad(f"high_freq_factor must be above low_freq_factor {low:g}, not {high:g}")
    return attrs.evolve(
        plain,
        factor=scaling.number("factor", FACTOR_MAX),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_positions=original,
    )


def _yarn(plain: RopeSpec, scaling: Values, original: int) -> RopeSpec:
    factor = scaling.number("factor", FACTOR_MAX)
    fast, slow = scaling.number("beta_fast", FACTOR_MAX, 32.0), scaling.number("beta_slow", FACTOR_MAX, 1.0)
    if fast < slow or plain.theta <= 1.0:
        raise scaling.bad(f"yarn needs beta_fast {fast:g} >= beta_slow {slow:g} and a rope_theta above 1")
    if scaling.has("attention_factor"):
        attention_factor = scaling.number("attention_factor", FACTOR_MAX)
    else:
        scale, all_scale = (
            scaling.number(key, FACTOR_MAX, 0.0, zero=True) if scaling.has(key) else 0.0
            for key in ("mscale", "mscale_all_dim")
        )
        both = bool(scale and all_scale)
        attention_factor = _yarn_scale(factor, scale if both else 1.0) / (_yarn_scale(factor, all_scale) if both else 1)
    return attrs.evolve(
        plain,
        factor=factor,
        original_max_positions=original,
        beta_fast=fast,
        beta_slow=slow,
        truncate=scaling.boolean("truncate", True),
        attention_factor=attention_factor,
    )


def _yarn_scale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(plain: RopeSpec, scaling: Values, original: int, max_positions: int) -> RopeSpec:
    factor = scaling.number("factor", FACTOR_MAX) if scaling.has("factor") else max_positions / original
    if scaling.has("attention_factor"):
        attention_factor = scaling.number("attention_factor", FACTOR_MAX)
    else:
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return attrs.evolve(
        plain,
        original_max_positions=original,
        short_factors=_factors(scaling, "short_factor", plain.dim // 2),
        long_factors=_factors(scaling, "long_factor", plain.dim // 2),
        attention_factor=attention_factor,
    )


def _factors(scaling: Values, key: str, count: int) -> tuple[float, ...]:
    value = scaling.get(key)
    numbers = value if isinstance(value, list) else []
    if len(numbers) != count or not all(type(item) in (int, float) and 0 < item <= FACTOR_MAX for item in numbers):
        raise scaling.bad(f"{key} must be {count} numbers above 0, not {shown(value)}")
    return tuple(float(item) for item in numbers)
