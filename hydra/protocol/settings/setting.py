"""What is special about a setting beside its type and its default: that it is written as a duration, or kept secret."""

import re
from typing import Any

import attrs

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """ "500ms" -> 0.5. Raises ValueError."""
    parts = _DURATION.fullmatch(text.strip())
    if parts is None:
        raise ValueError(f'{text!r} is no duration; write for example "500ms", "30s" or "2m"')
    return float(parts[1]) * _UNIT_S[parts[2]]


def duration(text: str) -> Any:
    """A field that is written "30s" and read in seconds."""
    return attrs.field(default=seconds(text), metadata={"duration": True})


def secret(default: object = "") -> Any:
    """A field that no log, no complaint and no command line shows."""
    return attrs.field(default=default, repr=False, metadata={"secret": True})


def is_secret(field: "attrs.Attribute[Any]") -> bool:
    return bool(field.metadata.get("secret"))


def is_duration(field: "attrs.Attribute[Any]") -> bool:
    return bool(field.metadata.get("duration"))
