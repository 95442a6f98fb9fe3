"""What the readers of quantisation configs share: lists of names, and keys that nobody may overlook."""

from collections.abc import Collection, Mapping
from typing import Any

from hydra.store.files.directory import shown
from hydra.store.models.config_values import Values

GROUP_MAX = 1 << 20  # rows or columns that have one scale
PATTERNS_MAX = 20_000  # entries of one list


def strings(config: Values, key: str) -> tuple[str, ...]:
    """A list of names or patterns; absent is empty."""
    value = config.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value) or len(value) > PATTERNS_MAX:
        raise config.bad(f"{key} must be a list of at most {PATTERNS_MAX} names, not {shown(value)}")
    return tuple(value)


def one_of(config: Values, key: str, known: Mapping[str, Any], default: str) -> Any:
    """What `known` has for the word that stands there."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, str) or value.lower() not in known:
        raise config.unsupported(key, value, " or ".join(map(repr, known)))
    return known[value.lower()]


def group_width(config: Values, key: str, default: int) -> int:
    """Columns that have one scale; -1 is a whole row, which is 0 here."""
    return 0 if config.get(key) == -1 else config.integer(key, GROUP_MAX, default)


def refuse_unknown(config: Values, known: Collection[str]) -> None:
    """For a config every key of which changes what the numbers are."""
    unknown = sorted(config.keys() - set(known))
    if unknown:
        raise config.unsupported(f"the key {unknown[0][:80]}", config.peek(unknown[0]), "a config without it")


def refuse_present(config: Values, keys: Collection[str]) -> None:
    """Keys that change what the numbers are, each by itself; values that say "not this" are passed over."""
    for key in keys:
        if not is_absent(config.get(key)):
            raise config.unsupported(key, config.get(key), "a model without it")


def is_absent(value: Any) -> bool:
    return value is None or value is False or value in ({}, [], "")
