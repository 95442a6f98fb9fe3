"""The byte ranges of each tensor that a model must have: one of a plain tensor, several of a quantised matrix.

Promises: a module is read in the way that both its config and its tensors say. One that is stored in full precision is
used so although its config quantises it, and that is said; the other way round it is refused. Refuses to know which
tensors a model must have.
"""

from collections.abc import Iterable, Iterator

import attrs
import structlog

from hydra.protocol.model.encoding import PLAIN_ENCODINGS, Encoding
from hydra.protocol.model.model_spec import Place, TensorRange, WeightRole, WeightSide
from hydra.protocol.refusal import refuse
from hydra.store.models.fused_experts import expert_ranges, wrong_dtype, wrong_shape
from hydra.store.models.name_prefix import why_lacking
from hydra.store.models.names import Expected, Names
from hydra.store.models.quantised.quantisation import ModuleKind, Quantisation
from hydra.store.models.quantised.scheme import Scheme, StoredMatrix
from hydra.store.models.stored_tensors import Located, StoredTensors

_KINDS: dict[WeightRole, ModuleKind] = {
    "qkv": "linear",
    "out": "linear",
    "gate_up": "linear",
    "down": "linear",
    "expert_gate_up": "linear",
    "expert_down": "linear",
    "head": "head",
    "embedding": "embedding",
}
# Beside a module's name: what only a quantised one has.
VALUES = (".weight_packed", ".qweight")
QUANTISED_MARKS = (
    *VALUES, ".weight_scale", ".weight_scale_inv", ".weight_global_scale", ".weight_zero_point", ".weight_g_idx",
    ".weight_scale_2", ".scales", ".qzeros", ".g_idx", ".weight.absmax", ".weight.quant_map", ".SCB", "_blocks",
    "_scales", "_scale_inv",
)  # fmt: skip
# Last components of names that say how activations, keys and values would be quantised.
OF_ACTIVATIONS = frozenset(
    f"{what}_{how}"
    for what in ("input", "output", "activation", "q", "k", "v")
    for how in ("scale", "zero_point", "global_scale")
)
BODIES = ("model.", "model.language_model.", "language_model.model.")
HEADS = ("lm_head", "language_model.lm_head", "model.lm_head")

log = structlog.get_logger()


@attrs.define
class MatrixRanges:
    """`ignored` are names of tensors that were looked at and are not needed; `unquantised` the modules whose config
    quantises them, while they are stored in full precision."""

    names: Names
    quantisation: Quantisation | None
    stored: StoredTensors
    ignored: set[str] = attrs.field(factory=set, init=False)
    unquantised: list[str] = attrs.field(factory=list, init=False)

    def of(self, expected: Iterable[Expected]) -> tuple[TensorRange, ...]:
        """Raises RefusalError: bad_model, unsupported."""
        ranges = tuple(source for tensor in expected for source in self._of(tensor))
        if self.unquantised:
            log.warning(
                "modules that the config quantises are stored in full precision; they are used as they are stored",
                n=len(self.unquantised),
                first=self.unquantised[0][:120],
            )
        return ranges

    def _of(self, expected: Expected) -> Iterator[TensorRange]:
        kind = _KINDS.get(expected.place.role)
        if self.quantisation is None or kind is None:
            yield from self._plain(expected)
            return
        kind = "experts" if len(expected.shape) == 3 else kind
        module = expected.name.removesuffix(".weight")
        scheme = self._scheme(self.quantisation, module, kind)
        if scheme is None:
            yield from self._plain(expected)
        else:
            yield from self._encoded(expected, module, scheme)

    def _scheme(self, quantisation: Quantisation, module: str, kind: ModuleKind) -> Scheme | None:
        """By the module's name as it is stored, or as its config may call it."""
        is_encoded = self._is_encoded(module)
        scheme: Scheme | None = None
        for alias in _aliases(self.names, module, kind):
            scheme = quantisation.scheme_of(alias, kind)
            if (scheme is not None) == is_encoded:
                return scheme
        if not is_encoded:
            if self.stored.find(f"{module}.weight" if kind != "experts" else module) is None:
                return scheme  # for it to say what is missing
            self.unquantised.append(module)
            return None
        marks = (*QUANTISED_MARKS, ".weight", "")
        mark = next(mark for mark in marks if module + mark in self.stored.placed)
        raise refuse(
            "bad_model",
            f"{self.stored.placed[module + mark]} holds {module + mark!r}, but {quantisation.where} leaves "
            f"{module!r} in full precision.",
        )

    def _is_encoded(self, module: str) -> bool:
        if any(module + mark in self.stored.placed for mark in QUANTISED_MARKS):
            return True
        located = self.stored.find(f"{module}.weight") or self.stored.find(module)
        return located is not None and located[1].file_dtype not in PLAIN_ENCODINGS

    def _encoded(self, expected: Expected, module: str, scheme: Scheme) -> Iterator[TensorRange]:
        *experts, rows, columns = expected.shape
        matrix = StoredMatrix(
            module=module,
            rows=rows,
            columns=columns,
            experts=experts[0] if experts else None,
            find=lambda suffix: self.stored.find(module + suffix),
        )
        layout = scheme.layout(matrix)
        self.ignored.update(module + suffix for suffix in layout.ignored)
        yield from _ranges(expected, "values", layout.values, layout.encoding, (rows, columns))
        for side in layout.sides:
            shape = side.located[1].shape[1:] if experts else side.located[1].shape
            yield from _ranges(expected, side.side, side.located, side.encoding, shape)

    def _plain(self, expected: Expected) -> Iterator[TensorRange]:
        name, shape = expected.name, expected.shape
        located = self.stored.find(name)
        if located is None:
            raise why_lacking(name, expected.place.role == "head", self.stored.placed)
        file, stored = located
        if expected.form not in ("module", "tensor"):
            yield from expert_ranges(expected, file, stored)
            return
        if stored.shape != shape:
            raise wrong_shape(name, file, stored, shape)
        encoding = PLAIN_ENCODINGS.get(stored.file_dtype)
        if encoding is None:
            raise wrong_dtype(name, file, stored, tuple(PLAIN_ENCODINGS))
        yield from _ranges(expected, "values", located, encoding, shape, whole=True)


def _ranges(
    expected: Expected,
    side: WeightSide,
    located: Located,
    encoding: Encoding,
    shape: tuple[int, ...],
    *,
    whole: bool = False,
) -> Iterator[TensorRange]:
    """One for each expert of a tensor that holds all of them, unless they stay together; else one."""
    file, stored = located
    place = expected.place
    if whole or len(expected.shape) < 3:
        experts: tuple[int | None, ...] = (place.expert,)
    else:
        experts = tuple(range(expected.shape[0]))
    length = stored.length // len(experts)
    for number, expert in enumerate(experts):
        yield TensorRange(
            name=stored.name,
            file=file,
            offset=stored.offset + number * length,
            length=length,
            encoding=encoding,
            shape=shape,
            place=place if side == "values" and expert == place.expert else _beside(place, side, expert),
        )


def _beside(place: Place, side: WeightSide, expert: int | None) -> Place:
    """Built by hand: there are tens of thousands of them."""
    return Place(
        role=place.role,
        layer=place.layer,
        first_row=place.first_row,
        expert=expert,
        side=side,
        converted=place.converted,
    )


def _aliases(names: Names, module: str, kind: ModuleKind) -> Iterator[str]:
    """A module's name as it is stored, then as libraries call it that put the model into another wrapper."""
    yield module
    body = names.layers.removesuffix("layers.")
    others = HEADS if kind == "head" else tuple(start + module.removeprefix(body) for start in BODIES)
    yield from (other for other in others if other != module)


def with_plain_names(stored: Iterable[str]) -> set[str]:
    """Names of tensors, and for each quantised matrix the one that it would have in full precision."""
    names = set(stored)
    for suffix in VALUES:
        names |= {name.removesuffix(suffix) + ".weight" for name in names if name.endswith(suffix)}
    return names
