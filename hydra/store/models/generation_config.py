"""generation_config.json: where a model's answers begin and end, and how its publisher would have them sampled.

Promises: token ids are of the vocabulary, sampling values in the ranges a request's would have to keep. A value that
cannot be kept does not stop the model: as in transformers it is read only where something is generated, so a warning
names file, key and value, and says what is done instead. What the file says of searches that Hydra does not run (beams,
contrastive search) is none of its business.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import structlog

from hydra.protocol.sampling import TOP_P_MIN, DefaultSampling
from hydra.store.files.directory import read_json_file, shown
from hydra.store.models.config_values import Values

GENERATION_CONFIG = "generation_config.json"
EOS_MAX = 1024  # of one file; the end of an answer is looked for at every token
TEMPERATURE_MAX = 100.0  # beyond, all tokens are equally likely
PENALTY_MIN, PENALTY_MAX = 0.01, 100.0
FLOAT_MAX = 1e300  # an integer of JSON, and a number like 1e999, may be more than a float holds

log = structlog.get_logger()


@attrs.frozen(kw_only=True)
class GenerationDefaults:
    """What is said of generation."""

    bos_id: int | None
    eos_ids: tuple[int, ...]
    default_sampling: DefaultSampling


def read_generation(directory: Path, configs: Sequence[Values], vocab: int) -> GenerationDefaults:
    """generation_config.json together with `configs`: config.json, and the text model's part of it where it has one.
    Raises RefusalError bad_model for a broken file.

    An answer ends at any end token that any of them names: published models name one here and another there. Where
    several name a first token, generation_config.json counts, then the first of `configs`.
    """
    content = read_json_file(directory, GENERATION_CONFIG)
    generation = Values(content[0] if content else {}, GENERATION_CONFIG)
    bos_ids = [token for file in (generation, *configs) for token in _token_ids(file, "bos_token_id", vocab)]
    eos_ids = [token for file in (generation, *configs) for token in _token_ids(file, "eos_token_id", vocab)]
    return GenerationDefaults(
        bos_id=bos_ids[0] if bos_ids else None,
        eos_ids=tuple(dict.fromkeys(eos_ids)),
        default_sampling=_default_sampling(generation, vocab),
    )


def _token_ids(file: Values, key: str, vocab: int) -> list[int]:
    """One token id or several; what is no token of the vocabulary (-1 is published for "none") is left out."""
    value = file.get(key)
    items = [] if value is None else value if isinstance(value, list) else [value]
    if len(items) > EOS_MAX:
        raise file.bad(f"{key} has {len(items)} entries; at most {EOS_MAX} are read")
    ids = [_whole(item) for item in items]
    unknown = [item for item, token in zip(items, ids, strict=True) if token is None or not 0 <= token < vocab]
    if unknown:
        _warn(file, key, unknown, f"left out: tokens of this model are 0 to {vocab - 1}")
    return [token for token in ids if token is not None and 0 <= token < vocab]


def _default_sampling(generation: Values, vocab: int) -> DefaultSampling:
    """Without `do_sample` the model is published as greedy, and its temperature and masks mean nothing."""
    penalty = _within(generation, "repetition_penalty", PENALTY_MIN, PENALTY_MAX, zero=False)
    do_sample = generation.get("do_sample")
    if do_sample is not None and not isinstance(do_sample, bool):
        _warn(generation, "do_sample", do_sample, "taken as false")
    if do_sample is not True:
        return DefaultSampling(repetition_penalty=penalty)
    return DefaultSampling(
        temperature=_within(generation, "temperature", 0.0, TEMPERATURE_MAX),
        top_p=_top_p(generation),
        top_k=_top_k(generation, vocab),
        min_p=_min_p(generation),
        repetition_penalty=penalty,
    )


def _within(file: Values, key: str, least: float, most: float, *, zero: bool = True) -> float | None:
    """A number below 0 (or at 0, without `zero`) has no meaning; one beyond the bounds means about what they do."""
    number = _number(file, key)
    if number is None or number < 0 or (number == 0 and not zero):
        return None if number is None else _left_out(file, key)
    bounded = min(max(number, least), most)
    if bounded != number:
        _warn(file, key, file.get(key), f"taken as {bounded:g}")
    return bounded


def _top_p(file: Values) -> float | None:
    """transformers asks whether it is below 1 before it looks at it; 0 leaves the best token."""
    number = _number(file, "top_p")
    if number is None or number < 0:
        return None if number is None else _left_out(file, "top_p")
    if number > 1:
        _warn(file, "top_p", file.get("top_p"), "taken as 1: off")
    if number == 0:
        _warn(file, "top_p", file.get("top_p"), "taken as: only the likeliest token")
    return min(max(number, TOP_P_MIN), 1.0)


def _top_k(file: Values, vocab: int) -> int | None:
    """-1 is published for "off", which is 0 here. More than the vocabulary is all of it."""
    number = _number(file, "top_k")
    if number is None or number != int(number):
        if number is not None:
            _left_out(file, "top_k")
        return None
    if number < 0:
        _warn(file, "top_k", file.get("top_k"), "taken as 0: off")
    return min(max(int(number), 0), vocab)


def _min_p(file: Values) -> float | None:
    number = _number(file, "min_p")
    return number if number is None or 0 <= number <= 1 else _left_out(file, "min_p")


def _number(file: Values, key: str) -> float | None:
    """A finite number, also one that is written as text; None, with a warning, for anything else."""
    value = file.get(key)
    if value is None:
        return None
    number = _parsed(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or number != number:
        return _left_out(file, key)
    if isinstance(value, str):
        _warn(file, key, value, "taken as the number")
    return float(max(-FLOAT_MAX, min(number, FLOAT_MAX)))


def _parsed(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _whole(item: Any) -> int | None:
    """An integer, also one that is written 2.0."""
    if type(item) is float and item.is_integer():
        return int(item)
    return item if type(item) is int else None


def _left_out(file: Values, key: str) -> float | None:
    """None, which is what a key that is not there means."""
    _warn(file, key, file.get(key), "left out, as if it were not there")
    return None


def _warn(file: Values, key: str, value: Any, instead: str) -> None:
    log.warning("a value of a model cannot be kept as it is", file=file.file, key=key, value=shown(value), done=instead)
