"""How a file holds the numbers of a tensor, apart from the dtype that they are computed in.

Bytes of a tensor are asked of its encoding, never reckoned from a dtype, and so is what it keeps of memory: numbers
that are computed with as they are stored (`kept_bytes`) do not grow in a route of a wide dtype. Every encoding has a
name that says all of it; that name travels. Knows no tensor's meaning, and not how numbers are decoded.
"""

import math
import re
from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

import attrs

from hydra.protocol.model.dtype import DTYPE_BYTES, Dtype

TensorShape: TypeAlias = tuple[int, ...]
GroupScheme: TypeAlias = Literal["packed", "gptq", "awq", "int8", "float8", "mxfp4", "nvfp4", "nf4"]
"""How a matrix lies in several tensors: as compressed-tensors packs it, as GPTQ and AutoRound do, as AWQ does, one int8
or float8 per number, as gpt-oss has MXFP4, as compressed-tensors and ModelOpt have NVFP4, as bitsandbytes has nf4."""


@attrs.frozen
class PlainEncoding:
    """One number after the other, each in the little-endian form of a dtype."""

    dtype: Dtype

    @property
    def name(self) -> str:
        return _PLAIN_NAMES[self.dtype]

    def n_bytes(self, shape: TensorShape) -> int:
        """Of a file, for a tensor of this shape."""
        return math.prod(shape) * DTYPE_BYTES[self.dtype]

    def kept_bytes(self, shape: TensorShape) -> int | None:
        """Of memory, whatever dtype is computed in; None: the numbers are brought into that dtype."""
        return None


@attrs.frozen
class SideEncoding:
    """What stands beside a matrix's values and is never computed in: integers, and small floats."""

    name: str
    item_bytes: int

    def n_bytes(self, shape: TensorShape) -> int:
        return math.prod(shape) * self.item_bytes

    def kept_bytes(self, shape: TensorShape) -> int | None:
        return 0  # it is counted with the values


@attrs.frozen
class BlockEncoding:
    """GGUF's: each row is blocks of so many columns, each of so many bytes. The values are kept as they are stored;
    where codes are places in a table, with that table, and a scale that is an exponent with two bytes.
    """

    name: str
    columns: int
    block_bytes: int
    table_bytes: int = 0
    widened_bytes: int = 0  # of each block, in memory

    def n_bytes(self, shape: TensorShape) -> int:
        """Raises ValueError for rows that are no whole blocks."""
        if not shape or shape[-1] % self.columns:
            raise ValueError(f"rows of {shape} are no whole blocks of {self.name}")
        return math.prod(shape) // self.columns * self.block_bytes

    def kept_bytes(self, shape: TensorShape) -> int | None:
        return self.n_bytes(shape) + math.prod(shape) // self.columns * self.widened_bytes + self.table_bytes


@attrs.frozen
class GroupEncoding:
    """The values of a matrix whose scales, and whatever else it has, lie in tensors of their own (`Place.side`).

    A group of `group_rows` x `group_columns` numbers has one scale; 0: all that there are. `zero`: none (the middle of
    the range), stored, or stored as one less than it is. `ordered`: a side names the group of each column. `nested`:
    the scales are themselves codes of a second scale.
    """

    scheme: GroupScheme
    bits: int
    group_rows: int
    group_columns: int
    zero: Literal["none", "stored", "less_one"] = "none"
    ordered: bool = False
    nested: bool = False

    @property
    def name(self) -> str:
        words = [self.scheme, str(self.bits), f"{self.group_rows}x{self.group_columns}"]
        words += [] if self.zero == "none" else [self.zero]
        return ":".join([*words, *(["ordered"] if self.ordered else []), *(["nested"] if self.nested else [])])

    def n_bytes(self, shape: TensorShape) -> int:
        """Of the values alone: a row of codes fills whole words of 32 bits where the scheme packs into words."""
        rows, columns = math.prod(shape[:-1]), shape[-1]
        if self.scheme == "packed":
            return rows * (-(-columns * self.bits // 32)) * 4
        if columns * rows * self.bits % 8:
            raise ValueError(f"{shape} are no whole bytes of {self.name}")
        return rows * columns * self.bits // 8

    def n_groups(self, shape: TensorShape) -> int:
        """Scales of a matrix of this shape."""
        rows, columns = math.prod(shape[:-1]), shape[-1]
        return -(-rows // (self.group_rows or rows)) * -(-columns // (self.group_columns or columns))

    def kept_bytes(self, shape: TensorShape) -> int | None:
        """Codes, and for each group a scale (of 4 bytes with float8, else of 2) and a zero of one byte if there is one;
        the order of its columns, as indices of 8 bytes; and the table of 16 numbers where codes are places in one."""
        rows, columns = math.prod(shape[:-1]), shape[-1]
        each = (4 if self.scheme in ("float8", "nf4") else 2) + (self.zero != "none")
        beside = (8 * columns if self.ordered else 0) + (
            _TABLE_BYTES if self.scheme in ("mxfp4", "nvfp4", "nf4") else 0
        )
        return rows * columns * self.bits // 8 + self.n_groups(shape) * each + beside


@attrs.frozen
class QuantisedEncoding:
    """Plain in the file, and made into codes of 8 or 4 bits while it is read: groups of QUANTISED_COLUMNS, each with a
    scale of 2 bytes.
    """

    stored: PlainEncoding
    bits: int

    @property
    def name(self) -> str:
        return f"{self.stored.name}>int{self.bits}"

    def n_bytes(self, shape: TensorShape) -> int:
        return self.stored.n_bytes(shape)

    def kept_bytes(self, shape: TensorShape) -> int | None:
        rows, columns = math.prod(shape[:-1]), shape[-1]
        return rows * columns * self.bits // 8 + 2 * rows * -(-columns // QUANTISED_COLUMNS)


Encoding: TypeAlias = PlainEncoding | SideEncoding | BlockEncoding | GroupEncoding | QuantisedEncoding

QUANTISED_COLUMNS = 32
_TABLE_BYTES = 64  # 16 numbers of float32
_PLAIN_NAMES: Mapping[Dtype, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
F32, BF16, F16 = PlainEncoding("float32"), PlainEncoding("bfloat16"), PlainEncoding("float16")
PLAIN_ENCODINGS: Mapping[str, PlainEncoding] = {encoding.name: encoding for encoding in (F32, BF16, F16)}
SIDE_ENCODINGS: Mapping[str, SideEncoding] = {
    name: SideEncoding(name, item_bytes)
    for name, item_bytes in (("I8", 1), ("U8", 1), ("I32", 4), ("I64", 8), ("F8_E4M3", 1), ("F8_E8M0", 1))
}
BLOCK_ENCODINGS: Mapping[str, BlockEncoding] = {
    name: BlockEncoding(name, columns, block_bytes)
    for name, columns, block_bytes in (
        ("Q4_0", 32, 18),
        ("Q4_1", 32, 20),
        ("Q5_0", 32, 22),
        ("Q5_1", 32, 24),
        ("Q8_0", 32, 34),
        ("Q2_K", 256, 84),
        ("Q3_K", 256, 110),
        ("Q4_K", 256, 144),
        ("Q5_K", 256, 176),
        ("Q6_K", 256, 210),
        ("IQ4_XS", 256, 136),
    )
} | {
    "IQ4_NL": BlockEncoding("IQ4_NL", 32, 18, table_bytes=_TABLE_BYTES),
    "MXFP4": BlockEncoding("MXFP4", 32, 17, table_bytes=_TABLE_BYTES, widened_bytes=1),
}
QUANTISED_ENCODINGS: Mapping[str, QuantisedEncoding] = {
    encoding.name: encoding
    for encoding in (QuantisedEncoding(stored, bits) for stored in (F32, BF16, F16) for bits in (4, 8))
}
NAMED_ENCODINGS: Mapping[str, Encoding] = {
    **PLAIN_ENCODINGS,
    **SIDE_ENCODINGS,
    **BLOCK_ENCODINGS,
    **QUANTISED_ENCODINGS,
}
_GROUPED = re.compile(
    r"(?P<scheme>\w+):(?P<bits>[48]):(?P<rows>\d{1,7})x(?P<columns>\d{1,7})(?::(?P<zero>stored|less_one))?"
    r"(?P<ordered>:ordered)?(?P<nested>:nested)?"
)


def encoding_of(name: str) -> Encoding:
    """The encoding of this name. Raises ValueError for a name that none has."""
    if name in NAMED_ENCODINGS:
        return NAMED_ENCODINGS[name]
    match = _GROUPED.fullmatch(name)
    scheme = next((known for known in get_args(GroupScheme) if match is not None and known == match["scheme"]), None)
    if match is None or scheme is None:
        raise ValueError(f"no encoding is called {name[:80]!r}")
    zero: Literal["none", "stored", "less_one"] = "none"
    if match["zero"] is not None:
        zero = "stored" if match["zero"] == "stored" else "less_one"
    return GroupEncoding(
        scheme=scheme,
        bits=int(match["bits"]),
        group_rows=int(match["rows"]),
        group_columns=int(match["columns"]),
        zero=zero,
        ordered=match["ordered"] is not None,
        nested=match["nested"] is not None,
    )
