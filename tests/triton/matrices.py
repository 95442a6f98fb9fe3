"""Small encoded matrices of every form, with scales that keep their numbers near one."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hydra.kernels.weights.encoded.encoded_matrix import BlockMatrix, EncodedMatrix, Float8Matrix, GroupedMatrix
from hydra.protocol.model.encoding import BLOCK_ENCODINGS

# Where in a block the float16 scales lie, by number of float16.
BLOCK_SCALES: Mapping[str, tuple[int, ...]] = {
    "Q4_K": (0, 1),
    "Q5_K": (0, 1),
    "Q6_K": (104,),
    "Q2_K": (40, 41),
    "Q3_K": (54,),
    "IQ4_XS": (0,),
    "Q5_0": (0,),
    "Q5_1": (0, 1),
}


def block_matrix(name: str, rows: int, columns: int, random: torch.Generator) -> BlockMatrix:
    """Any bytes are a matrix; only the scales are chosen."""
    encoding = BLOCK_ENCODINGS[name]
    shape = (rows, columns // encoding.columns, encoding.block_bytes)
    data = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    for at in BLOCK_SCALES[name]:
        scales = torch.rand(shape[:2], generator=random) * 0.01 + 0.001
        data[:, :, 2 * at : 2 * at + 2] = scales.to(torch.float16).unsqueeze(-1).view(torch.uint8)
    return BlockMatrix(encoding=encoding, data=data.view(rows, -1))


def grouped_matrix(
    bits: int,
    kind: str,
    rows: int,
    columns: int,
    group: int,
    random: torch.Generator,
    scale_dtype: torch.dtype = torch.float16,
    ordered: bool = False,
) -> GroupedMatrix:
    """`kind`: middle, zeros, minima or table."""
    groups = -(-columns // group)
    codes = torch.randint(0, 256, (rows, columns * bits // 8), dtype=torch.uint8, generator=random)
    spread = torch.randn(rows, groups, generator=random).to(scale_dtype)
    return GroupedMatrix(
        codes=codes.view(torch.int8) if bits == 8 and kind == "middle" else codes,
        scales=(torch.rand(rows, groups, generator=random) / 2 ** (bits - 1)).to(scale_dtype),
        bits=bits,
        group_columns=group,
        zeros=torch.randint(0, 2**bits, (rows, groups), dtype=torch.uint8, generator=random)
        if kind == "zeros"
        else None,
        minima=spread if kind == "minima" else None,
        table=torch.randn(16, generator=random) if kind == "table" else None,
        order=torch.randperm(columns, generator=random) if ordered else None,
    )


def float8_matrix(rows: int, columns: int, down: int, across: int, random: torch.Generator) -> Float8Matrix:
    """With every finite code in its first row, as far as there is room."""
    codes = torch.randn(rows, columns, generator=random).to(torch.float8_e4m3fn)
    every = torch.tensor([code for code in range(256) if code & 127 != 127], dtype=torch.uint8)[:columns]
    codes.view(torch.uint8)[0, : len(every)] = every
    scales = torch.rand(-(-rows // down), -(-columns // across), generator=random)
    return Float8Matrix(codes=codes, scales=scales, group_rows=down, group_columns=across)


def every_form(rows: int, blocks: int, random: torch.Generator) -> dict[str, EncodedMatrix]:
    """By name; columns are `blocks` times 256 where the form has such blocks, else no whole number of tiles."""
    columns = blocks * 256
    forms: dict[str, EncodedMatrix] = {
        name: block_matrix(name, rows, columns - (32 if name in ("Q5_0", "Q5_1") else 0), random)
        for name in BLOCK_SCALES
    }
    for kind, dtype in (("middle", torch.float16), ("zeros", torch.bfloat16), ("minima", torch.float32)):
        forms[f"4 bits, {kind}"] = grouped_matrix(4, kind, rows, columns - 96, 32, random, dtype)
    forms["4 bits, table"] = grouped_matrix(4, "table", rows, columns, 16, random, torch.float32)
    forms["4 bits, a row is a group"] = grouped_matrix(4, "middle", rows, columns - 6, columns - 6, random)
    forms["4 bits, an odd number of groups"] = grouped_matrix(4, "zeros", rows, columns - 64, 96, random)
    forms["4 bits, ordered"] = grouped_matrix(4, "zeros", rows, columns, 128, random, ordered=True)
    forms["8 bits, signed"] = grouped_matrix(8, "middle", rows, columns - 1, 32, random)
    forms["8 bits, zeros"] = grouped_matrix(8, "zeros", rows, columns, 128, random)
    for down, across in ((128, 128), (1, columns), (rows, columns), (16, 32)):
        forms[f"float8 {down}x{across}"] = float8_matrix(rows, columns - 20, down, across, random)
    return forms


def reference(x: Tensor, matrix: EncodedMatrix) -> Tensor:
    """The twin's product: the same numbers, multiplied in float64."""
    return x.double() @ matrix.decode(x.dtype).double().T


def error(product: Tensor, expected: Tensor) -> float:
    return float((product.double() - expected).abs().max() / expected.abs().max())
