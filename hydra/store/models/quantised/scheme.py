"""How a matrix of a quantised checkpoint lies in tensors: which there are beside its values, and in what shapes.

Promises: what `layout` returns fits the matrix's shape number by number; what does not is refused with the file and the
tensor named. Refuses to know configs, and where a matrix belongs in a model.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import attrs

from hydra.protocol.model.encoding import NAMED_ENCODINGS, Encoding, GroupEncoding, TensorShape
from hydra.protocol.model.model_spec import WeightSide
from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.models.stored_tensors import Located

FLOATS = ("BF16", "F16", "F32")


@attrs.frozen(kw_only=True)
class StoredSide:
    """One tensor of a matrix as it was found, with the encoding that its numbers have."""

    side: WeightSide
    located: Located
    encoding: Encoding


@attrs.frozen(kw_only=True)
class MatrixLayout:
    """A matrix's values and sides. `ignored` are suffixes of tensors that were looked at and are not needed."""

    encoding: GroupEncoding
    values: Located
    sides: tuple[StoredSide, ...]
    ignored: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class StoredMatrix:
    """A published matrix of `rows` x `columns`, or one for each of `experts`. `find` looks a tensor up by the suffix
    that it has behind the module's name."""

    module: str
    rows: int
    columns: int
    experts: int | None
    find: Callable[[str], Located | None]

    def need(self, suffix: str, dtypes: Sequence[str], *shapes: TensorShape) -> Located:
        """The tensor with this suffix, of one of these dtypes and in one of these shapes (of one expert)."""
        located = self.find(suffix)
        if located is None:
            raise self.lacks(suffix)
        stored = located[1]
        if stored.file_dtype not in dtypes:
            raise self.unfit(located, f"is stored as {stored.file_dtype}, not as {' or '.join(dtypes)}")
        whole = shapes if self.experts is None else [(self.experts, *shape) for shape in shapes]
        if stored.shape not in whole:
            raise self.unfit(located, f"has shape {stored.shape}, not {' or '.join(map(str, whole))}")
        return located

    def side(self, side: WeightSide, suffix: str, dtypes: Sequence[str], *shapes: TensorShape) -> StoredSide:
        located = self.need(suffix, dtypes, *shapes)
        return StoredSide(side=side, located=located, encoding=NAMED_ENCODINGS[located[1].file_dtype])

    def lacks(self, suffix: str) -> RefusalError:
        what = f"The weights lack {self.module + suffix!r}"
        return refuse("bad_model", f"{what}, which quantization_config in config.json asks for.")

    def unfit(self, located: Located, what: str) -> RefusalError:
        file, stored = located
        size = f"{self.rows} x {self.columns}" + ("" if self.experts is None else f" of {self.experts} experts")
        return refuse(
            "bad_model",
            f"{stored.name!r} in {file} {what}: config.json asks for a matrix of {size} in the way that its "
            "quantization_config describes.",
        )

    def unsupported(self, what: str) -> RefusalError:
        return refuse("unsupported", f"{self.module!r} is a matrix of {self.rows} x {self.columns}, {what}.")


class Scheme(Protocol):
    """One way of storing a matrix, as a config describes it."""

    def layout(self, matrix: StoredMatrix) -> MatrixLayout:
        """Raises RefusalError: bad_model, unsupported."""


def n_groups(count: int, group: int) -> int:
    """Of `count` rows or columns; a group of 0 is all of them."""
    return -(-count // group) if group else 1
