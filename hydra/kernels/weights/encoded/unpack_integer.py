"""Integers with a scale per group: compressed-tensors' packed ones and its int8, GPTQ and AutoRound, AWQ.

A number is scale * (code - zero). The middle of the range as the zero of all groups is dropped: products are faster
without. Where the files' groups are of columns far apart ("act-order"), the columns of the codes are put in another
order, in which each group is in one place. Knows no file.
"""

import torch
from torch import Tensor

from hydra.kernels.weights.encoded.code_bytes import code_per_byte, paired, row_pieces, with_columns
from hydra.kernels.weights.encoded.encoded_matrix import GroupedMatrix
from hydra.kernels.weights.encoded.published_matrix import PLAIN_NAMES, PublishedMatrix
from hydra.protocol.model.encoding import TensorShape
from hydra.protocol.refusal import refuse

_AWQ_NIBBLES = [0, 4, 1, 5, 2, 6, 3, 7]  # of a word, from the lowest, by the column that they hold


def unpack_packed(matrix: PublishedMatrix) -> GroupedMatrix:
    """Words of 32 bits along a row, the lowest bits first; zero points packed in the same way down the rows."""
    rows, bits = matrix.rows, matrix.encoding.bits
    codes = matrix.raw["values"].view(rows, -1)[:, : matrix.columns * bits // 8].contiguous()
    zeros = None
    if matrix.encoding.zero != "none":
        words = matrix.side("zero", ("I32",), (-(-rows * bits // 32), matrix.groups))
        zeros = _unpacked_zeros(matrix, words.t().contiguous())
    return _grouped(matrix, codes, _row_scales(matrix), zeros)


def unpack_gptq(matrix: PublishedMatrix) -> GroupedMatrix:
    """The transpose: words down the columns of what is stored, scales and zero points by group and then by row."""
    rows, columns, bits = matrix.rows, matrix.columns, matrix.encoding.bits
    if columns * bits % 32:
        raise refuse("unsupported", f"{matrix.name}: {columns} columns of {bits} bits are no whole words")
    words = matrix.raw["values"].view(torch.int32).view(-1, rows)
    scales = matrix.side("scale", PLAIN_NAMES, (matrix.groups, rows)).t().contiguous()
    zeros = _unpacked_zeros(matrix, matrix.side("zero", ("I32",), (matrix.groups, -(-rows * bits // 32))))
    return _grouped(matrix, words.t().contiguous().view(torch.uint8), scales, zeros)


def unpack_awq(matrix: PublishedMatrix) -> GroupedMatrix:
    """The transpose too, but each word holds eight rows of one column, in an order of its own."""
    rows, columns = matrix.rows, matrix.columns
    if rows % 8:
        raise refuse("unsupported", f"{matrix.name}: {rows} rows are no whole words of eight")
    stored = matrix.raw["values"].view(columns, -1)
    codes = stored.new_empty(rows, columns // 2)
    for piece in row_pieces(rows, columns, multiple=8):
        codes[piece] = paired(_awq_codes(stored[:, piece.start // 2 : piece.stop // 2]).t())
    words = matrix.side("zero", ("I32",), (matrix.groups, rows // 8))
    scales = matrix.side("scale", PLAIN_NAMES, (matrix.groups, rows)).t().contiguous()
    return _grouped(matrix, codes, scales, _awq_codes(words.view(torch.uint8)).t().contiguous())


def unpack_int8(matrix: PublishedMatrix) -> GroupedMatrix:
    """One signed byte per number; with zero points, which are signed too, both are moved up by 128."""
    codes = matrix.raw["values"].view(matrix.rows, -1)
    zeros = None
    if matrix.encoding.zero != "none":
        zeros = _per_row(matrix, matrix.side("zero", ("I8",), *_scale_shapes(matrix)))
        zeros = zeros.view(torch.uint8) ^ 128
    if zeros is None or bool((zeros == 128).all()):
        return _as_grouped(matrix, codes.view(torch.int8), _row_scales(matrix), None, None)
    return _as_grouped(matrix, codes ^ 128, _row_scales(matrix), zeros, None)


def column_order(matrix: PublishedMatrix) -> Tensor | None:
    """For each column of the codes that of the input, such that groups are in one place; None where they are already.

    Refuses groups of unequal size: they have no such order.
    """
    index = matrix.side("order", ("I32", "I64"), (matrix.columns,)).to(torch.int64)
    plain = torch.arange(matrix.columns, device=index.device) // matrix.group_columns
    if torch.equal(index, plain) or bool((index == -1).all()):  # compressed-tensors: no order was made
        return None
    outside = ((index < 0) | (index >= matrix.groups)).nonzero()
    if len(outside):
        column = int(outside[0])
        raise matrix.bad(f"its group index puts column {column} in group {int(index[column])} of {matrix.groups}")
    sizes, needed = torch.bincount(index, minlength=matrix.groups), torch.bincount(plain)
    if not torch.equal(sizes, needed):
        group = int((sizes != needed).nonzero()[0])
        raise refuse(
            "unsupported",
            f"{matrix.name}: its group index (act-order) puts {int(sizes[group])} columns in group {group} of "
            f"{matrix.groups}; only groups of {matrix.group_columns} each are read",
        )
    return torch.argsort(index, stable=True)


def _grouped(matrix: PublishedMatrix, codes: Tensor, scales: Tensor, zeros: Tensor | None) -> GroupedMatrix:
    """Of unsigned codes, uint8 [rows, bytes], in the order of the input."""
    bits = matrix.encoding.bits
    has_order = matrix.has("order") or (matrix.encoding.ordered and matrix.groups > 1)
    order = column_order(matrix) if has_order else None
    if order is not None:
        codes = with_columns(codes, bits, order)
    if zeros is not None and bool((zeros == 1 << (bits - 1)).all()):
        zeros = None
    if bits == 8 and zeros is None:
        codes = (codes ^ 128).view(torch.int8)
    return _as_grouped(matrix, codes, scales, zeros, order)


def _as_grouped(
    matrix: PublishedMatrix, codes: Tensor, scales: Tensor, zeros: Tensor | None, order: Tensor | None
) -> GroupedMatrix:
    return GroupedMatrix(
        codes=codes,
        scales=scales,
        bits=matrix.encoding.bits,
        group_columns=matrix.group_columns,
        zeros=zeros,
        order=order,
    )


def _scale_shapes(matrix: PublishedMatrix) -> tuple[TensorShape, ...]:
    """By row and group; a single number where all rows share it."""
    return ((matrix.rows, matrix.groups),) if matrix.encoding.group_rows else ((),)


def _row_scales(matrix: PublishedMatrix) -> Tensor:
    return _per_row(matrix, matrix.side("scale", PLAIN_NAMES, *_scale_shapes(matrix)))


def _per_row(matrix: PublishedMatrix, side: Tensor) -> Tensor:
    return side.expand(matrix.rows, matrix.groups).contiguous()


def _unpacked_zeros(matrix: PublishedMatrix, words: Tensor) -> Tensor:
    """int32 [groups, words], each with the zero points of neighbouring rows, to uint8 [rows, groups]."""
    bits = matrix.encoding.bits
    zeros = code_per_byte(words.view(torch.uint8), bits)[:, : matrix.rows].t().contiguous()
    if matrix.encoding.zero != "less_one":
        return zeros
    highest = (1 << bits) - 1
    if bool((zeros == highest).any()):
        raise matrix.bad(f"a zero point is stored as {highest}, one less than it is, which is beyond {bits} bits")
    return zeros.add_(1)


def _awq_codes(data: Tensor) -> Tensor:
    """uint8 [n, bytes] of whole words to one code per element in the order of the rows."""
    nibbles = code_per_byte(data.contiguous(), 4).view(data.shape[0], -1, 8)
    return nibbles[:, :, _AWQ_NIBBLES].view(data.shape[0], -1)
