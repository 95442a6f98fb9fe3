"""The types that a GGUF file may say its tensors have: by number, with the bytes that each takes.

Promises: whatever number a file gives has a name or a sentence that a refusal can quote. Refuses to know how the
numbers of a type are decoded; which types are computed with, `protocol.model.encoding` says.
"""

from collections.abc import Mapping

import attrs

from hydra.protocol.model.encoding import BLOCK_ENCODINGS, PLAIN_ENCODINGS, Encoding


@attrs.frozen
class GgmlType:
    """Rows of this type are blocks of so many columns, each of so many bytes."""

    name: str
    columns: int
    block_bytes: int

    @property
    def encoding(self) -> Encoding | None:
        """None: nobody here computes with it."""
        return PLAIN_ENCODINGS.get(self.name) or BLOCK_ENCODINGS.get(self.name)


GGML_TYPES: Mapping[int, GgmlType] = {
    number: GgmlType(name, columns, block_bytes)
    for number, name, columns, block_bytes in (
        (0, "F32", 1, 4), (1, "F16", 1, 2), (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20), (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24), (8, "Q8_0", 32, 34), (9, "Q8_1", 32, 40), (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144), (13, "Q5_K", 256, 176), (14, "Q6_K", 256, 210), (15, "Q8_K", 256, 292),
        (16, "IQ2_XXS", 256, 66), (17, "IQ2_XS", 256, 74), (18, "IQ3_XXS", 256, 98), (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18), (21, "IQ3_S", 256, 110), (22, "IQ2_S", 256, 82), (23, "IQ4_XS", 256, 136),
        (24, "I8", 1, 1), (25, "I16", 1, 2), (26, "I32", 1, 4), (27, "I64", 1, 8), (28, "F64", 1, 8),
        (29, "IQ1_M", 256, 56), (30, "BF16", 1, 2), (34, "TQ1_0", 256, 54), (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17), (40, "NVFP4", 64, 36), (41, "Q1_0", 128, 18),
    )
}  # fmt: skip
_REMOVED = frozenset((4, 5, 31, 32, 33, 36, 37, 38))
FIRST_OF_IQK = 97


def unknown_type(number: int) -> str:
    """What is to be said of a number that is none of these."""
    if number in _REMOVED:
        return f"{number}, which was taken out of the format again"
    if FIRST_OF_IQK <= number < 400:
        return f"{number}, one of the types (IQK and others) that only ik_llama.cpp has"
    return f"{number}, which is unknown"
