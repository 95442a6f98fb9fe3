"""Typed access to a JSON object that a client sent: every refusal names its parameter. Pure.

Types are exact: true is no number, and an empty list is no object. A key that is sent as null is as good as absent. It
knows no parameter by name.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import attrs

from hydra.protocol.refusal import refuse

KEY_CHARACTERS_MAX = 64

T = TypeVar("T")


@attrs.frozen
class Fields:
    """A body, or an object inside of one; `inside` is then its name."""

    body: dict[str, Any]
    inside: str = ""

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.body.get(name)
        if value is None:
            return default
        if type(value) not in (int, float) or not math.isfinite(value):
            raise refuse("invalid_value", f"{name} must be a number", param=name)
        if not low <= value <= high:
            raise refuse("invalid_value", f"{name} must lie between {low:g} and {high:g}, not {value:g}", param=name)
        return float(value)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        value = self.body.get(name)
        if value is None:
            return default
        if type(value) is not int:
            raise refuse("invalid_value", f"{name} must be an integer", param=name)
        if not low <= value <= high:
            raise refuse("invalid_value", f"{name} must lie between {low} and {high}, not {value}", param=name)
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.body.get(name)
        if value is not None and type(value) is not bool:
            named = f"{self.inside}.{name}" if self.inside else name
            raise refuse("invalid_value", f"{named} must be true or false", param=self.inside or name)
        return default if value is None else value

    def either(self, ours: str, other: str, read: Callable[[str], T]) -> T | None:
        """One parameter by two names. Sent by both, they must agree."""
        values = {read(name) for name in (ours, other) if self.body.get(name) is not None}
        if len(values) > 1:
            raise refuse("invalid_value", f"{other} and {ours} are one parameter; send one of them", param=other)
        return values.pop() if values else None

    def text(self, name: str, most: int) -> str:
        value = self.body.get(name)
        if not isinstance(value, str) or not 0 < len(value) <= most:
            message = f"{name} must be a non-empty string of at most {most} characters"
            raise refuse("invalid_value", message, param=name)
        return value

    def one_of(self, name: str, default: T, known: Sequence[T]) -> T:
        value = self.body.get(name)
        if value is None:
            return default
        chosen = next((one for one in known if type(one) is type(value) and one == value), None)
        if chosen is None:
            raise refuse("invalid_value", f"{name} must be one of {', '.join(map(str, known))}", param=name)
        return chosen

    def text_or_none(self, name: str, most: int) -> str | None:
        return None if self.body.get(name) is None else self.text(name, most)

    def list_of(self, name: str, most: int) -> list[Any]:
        """Empty when it is absent."""
        value = self.body.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise refuse("invalid_value", f"{name} must be a list", param=name)
        if len(value) > most:
            raise refuse("invalid_value", f"at most {most} {name}", param=name)
        return value

    def object_of(self, name: str, most: int) -> dict[str, Any]:
        """Empty when it is absent."""
        value = self.body.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise refuse("invalid_value", f"{name} must be an object", param=name)
        if len(value) > most:
            raise refuse("invalid_value", f"{name} has more than {most} keys", param=name)
        return value


def key_name(key: str) -> str:
    """A client's key as it can stand in a list in a header: ASCII, no blanks, no commas, never long."""
    return quote(key, safe="._-$[]", errors="replace")[:KEY_CHARACTERS_MAX]
