"""The values of a model's JSON files, read with suspicion.

Promises: what a reader returns has the type and range it was asked for; a refusal names file, key and value.
Remembers which keys were asked for, so that whoever read all it understands can find out what it overlooked. Refuses to
know what any key means.
"""

from collections.abc import Mapping
from typing import Any

from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.files.directory import shown


class Values:
    """The top level of one JSON object. A key that is null is a key that is absent.

    Every reader raises RefusalError bad_model when a value is not what it must be; without a default, also when it is
    absent.
    """

    def __init__(self, raw: Mapping[str, Any], file: str) -> None:
        self._raw = raw
        self.file = file
        self.read: set[str] = set()

    def get(self, key: str) -> Any:
        """Whatever stands there, unchecked."""
        self.read.add(key)
        return self._raw.get(key)

    def has(self, key: str) -> bool:
        return self.get(key) is not None

    def says_null(self, key: str) -> bool:
        """Whether the key is there, with null."""
        self.read.add(key)
        return key in self._raw and self._raw[key] is None

    def peek(self, key: str) -> Any:
        """Whatever stands there, without counting as read."""
        return self._raw.get(key)

    def keys(self) -> frozenset[str]:
        """Of the values that are not null."""
        return frozenset(key for key, value in self._raw.items() if value is not None)

    def names(self) -> tuple[str, ...]:
        """The same in the order of the file."""
        return tuple(key for key, value in self._raw.items() if value is not None)

    def integer(self, key: str, limit: int, default: int | None = None, *, least: int = 1) -> int:
        value = self.get(key)
        if value is None:
            value = default
        if type(value) is not int or not least <= value <= limit:
            raise self.bad(f"{key} must be an integer from {least} to {limit}, not {shown(value)}")
        return value

    def number(self, key: str, limit: float, default: float | None = None, *, zero: bool = False) -> float:
        """A number above 0 (or from 0 on) and at most `limit`; an integer is taken as one."""
        value = self.get(key)
        if value is None:
            value = default
        if type(value) not in (int, float) or not (0 < value <= limit or (zero and value == 0)):
            raise self.bad(f"{key} must be a number {'from' if zero else 'above'} 0 to {limit:g}, not {shown(value)}")
        return float(value)

    def boolean(self, key: str, default: bool = False) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.bad(f"{key} must be true or false, not {shown(value)}")
        return value

    def nested(self, key: str) -> "Values | None":
        """A nested object; its refusals name the way to it."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.bad(f"{key} is not an object")
        return Values(value, f"{self.file}: {key}")

    def bad(self, what: str) -> RefusalError:
        return refuse("bad_model", f"{self.file}: {what}.")

    def unsupported(self, what: str, value: Any, known: str) -> RefusalError:
        return refuse("unsupported", f"{self.file}: {what} is {shown(value)}; only {known} is supported.")
