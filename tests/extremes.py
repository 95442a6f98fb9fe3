"""Well-formed sentences with extreme values: right classes and types, and numbers, texts and lists out of all reason.

`sentence` draws a message of any annotated class and packs it without asking the codec's limits, so that what arrives
is what a hostile peer would send. Half of what is drawn is near the truth (see `hints`), or nothing would get past the
first check.
"""

import random
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import msgpack
import numpy as np
import pytest

from hydra.protocol import codec
from hydra.protocol.batch import Logprobs, int32
from hydra.protocol.messages.generations import Tokens
from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.model.decoder_spec import DecoderSpec
from hydra.protocol.model.encoding import NAMED_ENCODINGS, Encoding
from hydra.protocol.model.layer_spec import LayerSpec, NormSpec
from hydra.protocol.model.model_spec import ModelSpec
from hydra.protocol.model.part_size import PartSize

INTS = (0, 1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**53 - 1)
WILD_INTS = (-1, -(2**31), 2**31, 2**32, 2**40, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63))
FLOATS = (0.0, 0.5, 1.0, 1e-300, 1e300, -1.0)
WILD_FLOATS = (float("nan"), float("inf"), float("-inf"), -1e308, 5e-324)
TEXTS = ("", "a", "pocket", "/etc", "tcp://127.0.0.1:9", "line\nend", "x" * 300)
WILD_TEXTS = ("x" * 70_000, "\0", "tcp://127.0.0.1:99999", "tcp://,", "inproc://" + "y" * 400)
COLUMNS = (0, 1, 2, 250, 258, 259, 2**31 - 1)
WILD_COLUMNS = (-1, -(2**31))


class Extremes:
    """Draws from one seed. `hints` are values of a type that make a sentence meet something that is there."""

    def __init__(self, rng: random.Random, hints: Mapping[Any, Sequence[Any]] | None = None) -> None:
        self.rng = rng
        self.hints = dict(hints or {})
        self.wild = 0.0  # the chance of each leaf to be out of reason

    def sentence(self, kind: type, to: str, number: int = 0) -> list[bytes]:
        self.wild = self.rng.choice((0.0, 0.0, 0.03, 0.3))
        fields = codec.converter.unstructure(self.value(kind))
        if kind in self.hints and self.rng.random() < 0.7:
            fields = self.bend(codec.converter.unstructure(self.rng.choice(self.hints[kind])))
        return [msgpack.packb((number, to, "asks", kind.__name__, fields), default=_plain, unicode_errors="replace")]

    def value(self, kind: Any) -> Any:
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if kind in self.hints and self.rng.random() < 0.6:
            return self.rng.choice(self.hints[kind])
        if isinstance(kind, typing.NewType):
            return self.value(kind.__supertype__)
        plain = {int: (INTS, WILD_INTS), float: (FLOATS, WILD_FLOATS), str: (TEXTS, WILD_TEXTS)}
        if kind in plain:
            return self._leaf(*plain[kind])
        if kind is bool:
            return self.rng.random() < 0.5
        if origin is typing.Literal:
            return self.rng.choice(args)
        if origin is np.ndarray:
            return self.column(self.rng.choice((0, 1, 3, 40)))
        if kind == Encoding:
            return self.rng.choice(tuple(NAMED_ENCODINGS.values()))  # `bend` makes others of their names
        if origin in (typing.Union, types.UnionType):
            return self._either(args)
        if origin is tuple:
            items = [args[0]] * self.rng.choice((0, 1, 2)) if args[1:] == (...,) else args
            return tuple(self.value(item) for item in items)
        if kind is Tokens:
            return self.tokens(self.rng.choice((0, 1, 3)))
        if kind is Logprobs:
            return self.logprobs(self.rng.choice((0, 1, 3)))
        if kind is ModelSpec:
            return self.spec()
        if kind is DecoderSpec:
            return self.decoder(self.rng.choice((1, 2, 5)))
        made = kind(**{field.name: self.value(field.type) for field in attrs.fields(attrs.resolve_types(kind))})
        if kind is LoadSlice and self.rng.random() < 0.7:  # of layers that are there
            return attrs.evolve(made, first_layer=0, end_layer=made.spec.n_layers)
        return made

    def bend(self, fields: Any) -> Any:
        """The same with one leaf that is extreme."""
        numbers = [(path, value) for path, value in leaves(fields) if type(value) in (int, float, str)]
        if not numbers:
            return fields
        path, value = self.rng.choice(numbers)
        kinds = {int: INTS + WILD_INTS, float: FLOATS + WILD_FLOATS, str: TEXTS + WILD_TEXTS}
        return bent(fields, path, self.rng.choice(kinds[type(value)]))

    def column(self, n: int) -> Any:
        return int32([self._leaf(COLUMNS, WILD_COLUMNS) for _ in range(n)])

    def tokens(self, n: int) -> Tokens:
        """Of as many rows in each column, or nothing would come of it but one refusal."""
        names = ("session", "attempt", "position", "token", "cached")
        finish = int32([self._leaf((0, 1, 2), (-1, 3, 2**31 - 1)) for _ in range(n)])
        logprobs = self.logprobs(n) if self.rng.random() < 0.5 else None
        return Tokens(**{name: self.column(n) for name in names}, finish=finish, logprobs=logprobs)

    def spec(self) -> ModelSpec:
        """Of as many sizes as layers, or hardly any would be read."""
        fields = {field.name: self.value(field.type) for field in attrs.fields(attrs.resolve_types(ModelSpec))}
        sizes = tuple(self.value(PartSize) for _ in range(fields["decoder"].n_layers))
        return ModelSpec(**fields | {"layer_sizes": sizes})

    def decoder(self, n: int) -> DecoderSpec:
        """Of so many layers, all of kinds that are there, or hardly any would be read."""
        return DecoderSpec(
            kinds=(self.value(LayerSpec),),
            layer_kinds=(self._leaf((0,), WILD_INTS),) * n,
            norm=self.value(NormSpec),
            embedding_scale=self._leaf(FLOATS, WILD_FLOATS),
        )

    def logprobs(self, n: int) -> Logprobs:
        width = self.rng.choice((0, 1, 3))
        chosen, top = (np.full(shape, self._leaf(FLOATS[:3], WILD_FLOATS[:3]), np.float32) for shape in (n, (n, width)))
        return Logprobs(chosen=chosen, top_ids=self.column(n * width).reshape(n, width), top=top)

    def _leaf(self, within: Sequence[Any], beyond: Sequence[Any]) -> Any:
        return self.rng.choice(beyond if self.rng.random() < self.wild else within)

    def _either(self, args: Sequence[Any]) -> Any:
        kind = self.rng.choice(args)
        return None if kind is type(None) else self.value(kind)


def or_many(few: int, many: int) -> list[Any]:
    """Many only in the full sweeps."""
    return [few, pytest.param(many, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]


Path = tuple[Any, ...]


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every plain value inside, and how to get there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        yield path, value
        return
    for key, inner in items:
        yield from leaves(inner, (*path, key))


def bent(value: Any, path: Path, other: Any) -> Any:
    """The same with another leaf."""
    if not path:
        return other
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[path[0]] = bent(value[path[0]], path[1:], other)
    return changed


def _plain(value: Any) -> Any:
    return value.item()
