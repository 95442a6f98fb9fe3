"""The metadata of a GGUF file, read with suspicion: keys and values, arrays decoded when they are asked for.

Promises: what a reader returns has the type and range it was asked for; a refusal names file and key. Remembers which
keys were asked for, so that whoever read all it understands can find out what it overlooked. Refuses to know what any
key means.
"""

import struct
from collections.abc import Mapping

import attrs
import numpy as np
from numpy.typing import NDArray

from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.files.directory import shown

META_ITEM_BYTES: Mapping[int, int] = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_NUMPY = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "u1", 10: "<u8", 11: "<i8", 12: "<f8"}
_STRING = 8


@attrs.frozen
class MetaArray:
    """`count` items of the type `item`, from byte `start` of the header on."""

    item: int
    count: int
    start: int


MetaValue = int | float | bool | str | MetaArray


@attrs.frozen
class Metadata:
    """Every reader raises RefusalError bad_model when a value is not what it must be; without a default, also when it
    is absent."""

    file: str
    raw: bytes = attrs.field(repr=False)
    values: Mapping[str, MetaValue] = attrs.field(repr=False)
    read: set[str] = attrs.field(factory=set, repr=False)

    def has(self, key: str) -> bool:
        self.read.add(key)
        return key in self.values

    def get(self, key: str) -> MetaValue | None:
        self.read.add(key)
        return self.values.get(key)

    def text(self, key: str, default: str | None = None) -> str:
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self.bad(key, f"must be a text, not {_shown(value)}")
        return value

    def integer(self, key: str, least: int, most: int, default: int | None = None) -> int:
        value = self.get(key)
        value = default if value is None else value
        if type(value) is not int or not least <= value <= most:
            raise self.bad(key, f"must be an integer from {least} to {most}, not {_shown(value)}")
        return value

    def number(self, key: str, most: float, default: float | None = None) -> float:
        """Above 0. One of 32 bits is the shortest decimal number that rounds to it, as a config would have it."""
        value = self.get(key)
        value = default if value is None else value
        if type(value) not in (int, float) or not 0 < float(value) <= most:  # type: ignore[arg-type] # see its type
            raise self.bad(key, f"must be a number above 0 to {most:g}, not {_shown(value)}")
        return shortest(float(value))  # type: ignore[arg-type] # as above

    def boolean(self, key: str, default: bool | None = None) -> bool:
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.bad(key, f"must be true or false, not {_shown(value)}")
        return value

    def one_of_all(self, key: str, least: int, most: int, default: int | None = None) -> int:
        """An integer that may be given once for each layer, and must be the same for all."""
        value = self.get(key)
        if not isinstance(value, MetaArray):
            return self.integer(key, least, most, default)
        items = {int(item) for item in self.numbers(key)}
        if len(items) != 1 or not least <= min(items) <= most:
            raise refuse("unsupported", f"The GGUF file {self.file}: {key} differs from layer to layer.")
        return items.pop()

    def strings(self, key: str) -> list[str]:
        array = self.get(key)
        if not isinstance(array, MetaArray) or array.item != _STRING:
            raise self.bad(key, f"must be an array of texts, not {_shown(array)}")
        at, texts, length_at = array.start, [], struct.Struct("<Q").unpack_from
        for number in range(array.count):
            end = at + 8 + length_at(self.raw, at)[0]
            try:
                texts.append(self.raw[at + 8 : end].decode("utf-8"))
            except UnicodeDecodeError as error:
                raise self.bad(key, f"has an item {number} that is not UTF-8") from error
            at = end
        return texts

    def numbers(self, key: str) -> NDArray[np.generic]:
        array = self.get(key)
        if not isinstance(array, MetaArray) or array.item == _STRING:
            raise self.bad(key, f"must be an array of numbers, not {_shown(array)}")
        return np.frombuffer(self.raw, _NUMPY[array.item], array.count, array.start)

    def bad(self, key: str, what: str) -> RefusalError:
        return refuse("bad_model", f"The GGUF file {self.file}: {key} {what}.")

    def unsupported(self, key: str, known: str) -> RefusalError:
        value = _shown(self.values.get(key))
        return refuse("unsupported", f"The GGUF file {self.file}: {key} is {value}; only {known} is supported.")


def shortest(number: float) -> float:
    """The shortest decimal number that is this one in 32 bits, if it was kept in 32 bits; else the number itself."""
    narrow = np.float32(number)
    return float(str(narrow)) if float(narrow) == number else number


def _shown(value: MetaValue | None) -> str:
    return f"an array of {value.count}" if isinstance(value, MetaArray) else shown(value)
