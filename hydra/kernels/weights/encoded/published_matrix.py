"""A matrix as its files hold it: raw bytes of its values and of what stands beside them, each checked before its use.

A side that is missing, that the scheme has no use for, or that has another dtype or shape than the matrix demands is
refused by name. Knows the sides, and not how numbers are made of them.
"""

from collections.abc import Collection, Mapping

import attrs
import torch
from torch import Tensor

from hydra.protocol.model.encoding import Encoding, GroupEncoding, TensorShape
from hydra.protocol.model.model_spec import WeightSide
from hydra.protocol.refusal import RefusalError, refuse

PLAIN_NAMES = ("F32", "BF16", "F16")
_DTYPES: Mapping[str, torch.dtype] = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
}
_WORDS: Mapping[WeightSide, str] = {
    "values": "values",
    "scale": "scales",
    "zero": "zero points",
    "order": "group index",
    "second_scale": "scales of its scales",
    "second_offset": "state in JSON",
    "table": "table",
    "second_table": "table of its scales",
    "shape": "stored shape",
}


@attrs.frozen(eq=False)
class PublishedMatrix:
    """[rows, columns] numbers, rows out by columns in, however they are packed. `name` is that of file and tensor."""

    name: str
    encoding: GroupEncoding
    rows: int
    columns: int
    raw: Mapping[WeightSide, Tensor]  # uint8, flat
    stored: Mapping[WeightSide, tuple[Encoding, TensorShape]]  # of all but the values

    @property
    def group_columns(self) -> int:
        return min(self.encoding.group_columns or self.columns, self.columns)

    @property
    def groups(self) -> int:
        """Along a row."""
        return -(-self.columns // self.group_columns)

    def check(self, bits: Collection[int], known: Collection[WeightSide]) -> None:
        """Refuses an encoding that its scheme does not have, a side too many, and values of another size."""
        if self.encoding.bits not in bits:
            raise refuse("unsupported", f"{self.name}: {self.encoding.name} is not read; {self.encoding.scheme} is of "
                         f"{' or '.join(str(number) for number in bits)} bits")  # fmt: skip
        for side in self.raw:
            if side != "values" and side not in known:
                raise self.bad(f"{self.encoding.scheme} has no {_WORDS[side]}, but the files do")
        if self.rows < 1 or self.columns * self.encoding.bits % 8:
            raise refuse("unsupported", f"{self.name}: {self.rows} rows of {self.columns} columns are no whole bytes")
        needed, there = self.encoding.n_bytes((self.rows, self.columns)), self.raw["values"].numel()
        if there != needed:
            raise self.bad(f"{self.rows} x {self.columns} numbers of {self.encoding.name} take {needed} bytes, "
                           f"but there are {there}")  # fmt: skip
        self._check_stored_shape()

    def has(self, side: WeightSide) -> bool:
        return side in self.raw

    def side(self, side: WeightSide, encodings: Collection[str], *shapes: TensorShape) -> Tensor:
        """That side as one of these shapes; dimensions of length one may stand elsewhere in what is stored."""
        if side not in self.raw:
            raise self.bad(f"it lacks its {_WORDS[side]}")
        encoding, stored = self.stored[side]
        if encoding.name not in encodings:
            raise self.bad(f"its {_WORDS[side]}: stored as {encoding.name}, not as {' or '.join(encodings)}")
        shape = next((shape for shape in shapes if _without_ones(shape) == _without_ones(stored)), None)
        if shape is None:
            raise self.bad(f"its {_WORDS[side]}: of shape {stored}; {self.rows} x {self.columns} numbers in groups of "
                           f"{self.group_columns} need {shapes[0]}")  # fmt: skip
        if self.raw[side].numel() != encoding.n_bytes(stored):
            raise self.bad(f"its {_WORDS[side]}: of {self.raw[side].numel()} bytes, not {encoding.n_bytes(stored)}")
        return self.raw[side].view(_DTYPES[encoding.name]).view(shape)

    def bad(self, what: str) -> RefusalError:
        return refuse("bad_model", f"{self.name}: {what}; fetch or convert the model again")

    def _check_stored_shape(self) -> None:
        if not self.has("shape"):
            return
        stored = self.side("shape", ("I64", "I32"), (2,)).tolist()
        if stored != [self.rows, self.columns]:
            raise self.bad(f"its stored shape is {stored}, that of the model's config {[self.rows, self.columns]}")


def _without_ones(shape: TensorShape) -> TensorShape:
    return tuple(length for length in shape if length != 1)
