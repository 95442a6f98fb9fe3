"""What the numbers of one tile of an encoded matrix are, for every form: the part of the Triton kernels that differs.

A matrix is walked in steps of SPAN columns. The codes of a step lie in one or several planes (the low and the high
halves of bytes, say), each a block of bytes [PARTS, LENGTH] per row whose parts share a scale. `tile_numbers` decodes a
plane of some rows to float32, computed as `EncodedMatrix.decode` does, `tile_columns` says which columns these are.
Nothing here knows what the numbers are for.
"""

import triton
import triton.language as tl


@triton.jit
def tile_columns(
    step,
    FORM: tl.constexpr,
    PLANE: tl.constexpr,
    SPAN: tl.constexpr,
    PARTS: tl.constexpr,
    LENGTH: tl.constexpr,
):
    """[PARTS, numbers of a part]."""
    part = tl.arange(0, PARTS)[:, None]
    place = tl.arange(0, 2 * LENGTH if FORM == "group4" else LENGTH)[None, :]
    if FORM == "group4":
        inner = part * (2 * LENGTH) + place
    elif FORM == "Q4_K" or FORM == "Q5_K":
        inner = part * 64 + PLANE * 32 + place
    elif FORM == "Q6_K":
        inner = (part // 4) * 128 + PLANE * 64 + (part % 4) * 16 + place
    elif FORM == "Q2_K" or FORM == "Q3_K":
        inner = (part // 2) * 128 + PLANE * 32 + (part % 2) * 16 + place
    elif FORM == "Q5_0" or FORM == "Q5_1" or FORM == "IQ4_XS":
        inner = part * 32 + PLANE * 16 + place
    else:
        inner = part * LENGTH + place
    return step * SPAN + inner


@triton.jit
def tile_numbers(
    data,
    scales,
    extra,
    row,
    step,
    columns,
    row_bytes,
    n_groups,
    group_rows,
    FORM: tl.constexpr,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    PLANE: tl.constexpr,
    SPAN: tl.constexpr,
    PARTS: tl.constexpr,
    LENGTH: tl.constexpr,
    EVEN: tl.constexpr,
):
    """float32 [rows, PARTS, numbers of a part]; zero behind the last column. `row` is int64."""
    if FORM == "group4" or FORM == "group8":
        numbers = _grouped(
            data, scales, extra, row, step, columns, row_bytes, n_groups, FORM, KIND, GROUP, SPAN, PARTS, LENGTH, EVEN
        )
    elif FORM == "float8":
        numbers = _float8(
            data, scales, row, step, columns, row_bytes, n_groups, group_rows, GROUP, SPAN, PARTS, LENGTH, EVEN
        )
    elif FORM == "Q5_0" or FORM == "Q5_1":
        numbers = _five_bits(data, scales, row, step, columns, row_bytes, FORM, PLANE, PARTS, LENGTH, EVEN)
    elif FORM == "Q4_K":
        numbers = _q4_k(data, scales, row * row_bytes + step * 144, PLANE, PARTS, LENGTH)
    elif FORM == "Q5_K":
        numbers = _q5_k(data, scales, row * row_bytes + step * 176, PLANE, PARTS, LENGTH)
    elif FORM == "Q6_K":
        numbers = _q6_k(data, scales, row * row_bytes + step * 210, PLANE, PARTS, LENGTH)
    elif FORM == "Q2_K":
        numbers = _q2_k(data, scales, row * row_bytes + step * 84, PLANE, PARTS, LENGTH)
    elif FORM == "Q3_K":
        numbers = _q3_k(data, scales, row * row_bytes + step * 110, PLANE, PARTS, LENGTH)
    else:
        tl.static_assert(FORM == "IQ4_XS")
        numbers = _iq4_xs(data, scales, extra, row * row_bytes + step * 136, PLANE, PARTS, LENGTH)
    return numbers


_LIFT: tl.constexpr = tl.constexpr(8388608.0)


@triton.jit
def _lifted(codes):
    """2**23 and an integer from 0 up, as float32: written into its lower bits, where a conversion would be slower. What
    is taken from it is exact, and so a difference costs no more than the way back."""
    return (codes.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True)


@triton.jit
def _line(codes, scale, start):
    """start + scale * code, where both are of whole parts. With 16-bit scales the product is exact in float32, so that
    one rounding gives what two do."""
    return tl.fma(
        _lifted(codes) - _LIFT,
        tl.broadcast_to(scale[:, :, None], codes.shape),
        tl.broadcast_to(start[:, :, None], codes.shape),
    )


@triton.jit
def _grouped(
    data,
    scales,
    extra,
    row,
    step,
    columns,
    row_bytes,
    n_groups,
    FORM: tl.constexpr,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    SPAN: tl.constexpr,
    PARTS: tl.constexpr,
    LENGTH: tl.constexpr,
    EVEN: tl.constexpr,
):
    """`extra` holds zeros, minima or the table, as KIND says. GROUP 0: a row is one group."""
    part = tl.arange(0, PARTS)
    byte = step * (PARTS * LENGTH) + part[:, None] * LENGTH + tl.arange(0, LENGTH)[None, :]
    at = data + (row * row_bytes)[:, None, None] + byte[None, :, :]
    first = step * SPAN + part * (SPAN // PARTS)
    group = first // GROUP if GROUP > 0 else first * 0
    side = (row * n_groups)[:, None] + group[None, :]
    inside = (first < columns)[None, :]
    if EVEN:
        raw = tl.load(at)
        scale = tl.load(scales + side).to(tl.float32)
    else:
        raw = tl.load(at, mask=(byte < row_bytes)[None, :, :], other=0)
        scale = tl.load(scales + side, mask=inside, other=0.0).to(tl.float32)
    if FORM == "group4":
        codes = tl.reshape(tl.join(raw & 15, raw >> 4), (row.shape[0], PARTS, 2 * LENGTH))
    else:
        codes = raw
    if KIND == "table":
        numbers = tl.load(extra + codes.to(tl.int32)) * scale[:, :, None]
    elif KIND == "minima":
        minimum = tl.load(extra + side, mask=inside, other=0.0).to(tl.float32)
        numbers = _line(codes, scale, minimum)
    elif KIND == "zeros":
        zero = tl.load(extra + side, mask=inside, other=0)
        numbers = (_lifted(codes) - _lifted(zero)[:, :, None]) * scale[:, :, None]
    elif FORM == "group8":  # a signed code: what makes it unsigned comes off again
        numbers = (_lifted(codes ^ 128) - (_LIFT + 128.0)) * scale[:, :, None]
    else:
        numbers = (_lifted(codes) - (_LIFT + 8.0)) * scale[:, :, None]
    return numbers


@triton.jit
def _float8(
    data,
    scales,
    row,
    step,
    columns,
    row_bytes,
    n_groups,
    group_rows,
    GROUP: tl.constexpr,
    SPAN: tl.constexpr,
    PARTS: tl.constexpr,
    LENGTH: tl.constexpr,
    EVEN: tl.constexpr,
):
    """e4m3fn read bit by bit: devices before compute capability 8.9 have no instruction for it. In the places of a
    float16 its exponent counts from eight powers of two lower, for the smallest numbers too."""
    part = tl.arange(0, PARTS)
    first = step * SPAN + part * LENGTH
    column = first[:, None] + tl.arange(0, LENGTH)[None, :]
    group = first // GROUP if GROUP > 0 else first * 0
    side = scales + (row // group_rows * n_groups)[:, None] + group[None, :]
    at = data + (row * row_bytes)[:, None, None] + column[None, :, :]
    if EVEN:
        raw = tl.load(at).to(tl.int32)
        scale = tl.load(side)
    else:
        raw = tl.load(at, mask=(column < columns)[None, :, :], other=0).to(tl.int32)
        scale = tl.load(side, mask=(first < columns)[None, :], other=0.0)
    half = (((raw & 0x80) << 8) | ((raw & 0x7F) << 7)).to(tl.int16).to(tl.float16, bitcast=True)
    number = tl.where((raw & 0x7F) == 0x7F, float("nan"), half.to(tl.float32) * 256.0)
    return number * scale[:, :, None]


@triton.jit
def _five_bits(
    data,
    halves,
    row,
    step,
    columns,
    row_bytes,
    FORM: tl.constexpr,
    PLANE: tl.constexpr,
    PARTS: tl.constexpr,
    LENGTH: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Q5_0 and Q5_1, several blocks of 32 at once: scale (and minimum), the fifth bits, 16 bytes of two codes each."""
    HEAD: tl.constexpr = 2 if FORM == "Q5_0" else 4
    block = step * PARTS + tl.arange(0, PARTS)
    at = (row * row_bytes)[:, None] + (block * (HEAD + 20))[None, :]
    inside = (block * 32 < columns)[None, :] | EVEN
    scale = tl.load(halves + (at >> 1), mask=inside, other=0.0).to(tl.float32)
    place = tl.arange(0, LENGTH)[None, None, :]
    raw = tl.load(data + at[:, :, None] + (HEAD + 4) + place, mask=inside[:, :, None], other=0)
    bit = PLANE * 16 + place
    fifth = tl.load(data + at[:, :, None] + HEAD + bit // 8, mask=inside[:, :, None], other=0).to(tl.int32)
    codes = ((raw >> (4 * PLANE)) & 15).to(tl.int32) | (((fifth >> (bit % 8)) & 1) << 4)
    if FORM == "Q5_0":
        numbers = (_lifted(codes) - (_LIFT + 16.0)) * scale[:, :, None]
    else:
        minimum = tl.load(halves + (at >> 1) + 1, mask=inside, other=0.0).to(tl.float32)
        numbers = _line(codes, scale, minimum)
    return numbers


@triton.jit
def _six_bits(packed, which):
    """Scale and minimum of the sub-blocks `which` of Q4_K and Q5_K, out of the twelve bytes at `packed`."""
    low = which < 4
    here = tl.load(packed + which).to(tl.int32)
    ahead = tl.load(packed + which + 4).to(tl.int32)
    behind = tl.load(packed + tl.maximum(which - 4, 0)).to(tl.int32)
    scale = tl.where(low, here & 63, (ahead & 15) | ((behind >> 6) << 4))
    minimum = tl.where(low, ahead & 63, (ahead >> 4) | ((here >> 6) << 4))
    return _lifted(scale) - _LIFT, _lifted(minimum) - _LIFT


@triton.jit
def _q4_k(data, halves, at, PLANE: tl.constexpr, PARTS: tl.constexpr, LENGTH: tl.constexpr):
    """float16 scale and minimum, twelve bytes of six-bit ones, 4 x 32 bytes of two codes each."""
    part = tl.arange(0, PARTS)[None, :]
    place = part[:, :, None] * LENGTH + tl.arange(0, LENGTH)[None, None, :]
    raw = tl.load(data + at[:, None, None] + 16 + place)
    codes = (raw >> (4 * PLANE)) & 15
    scale, minimum = _six_bits(data + at[:, None] + 4, 2 * part + PLANE)
    scale *= tl.load(halves + (at >> 1)).to(tl.float32)[:, None]
    minimum *= tl.load(halves + (at >> 1) + 1).to(tl.float32)[:, None]
    return _line(codes, scale, -minimum)


@triton.jit
def _q5_k(data, halves, at, PLANE: tl.constexpr, PARTS: tl.constexpr, LENGTH: tl.constexpr):
    """As Q4_K, with 32 bytes of fifth bits before the codes: bit j of each belongs to sub-block j."""
    part = tl.arange(0, PARTS)[None, :]
    place = tl.arange(0, LENGTH)[None, None, :]
    raw = tl.load(data + at[:, None, None] + 48 + part[:, :, None] * LENGTH + place)
    fifth = tl.load(data + at[:, None, None] + 16 + place).to(tl.int32)
    which = 2 * part + PLANE
    codes = ((raw >> (4 * PLANE)) & 15).to(tl.int32) | (((fifth >> which[:, :, None]) & 1) << 4)
    scale, minimum = _six_bits(data + at[:, None] + 4, which)
    scale *= tl.load(halves + (at >> 1)).to(tl.float32)[:, None]
    minimum *= tl.load(halves + (at >> 1) + 1).to(tl.float32)[:, None]
    return _line(codes, scale, -minimum)


@triton.jit
def _q6_k(data, halves, at, PLANE: tl.constexpr, PARTS: tl.constexpr, LENGTH: tl.constexpr):
    """128 bytes of low halves, 64 of upper bits, sixteen signed scales of 16 numbers each, a float16 scale. Parts: half
    of the block, odd or even quarter, half of the quarter; the plane is which two of the four quarters."""
    part = tl.arange(0, PARTS)[None, :]
    half, odd, rest = part // 4, part // 2 % 2, part % 2
    place = tl.arange(0, LENGTH)[None, None, :]
    raw = tl.load(data + at[:, None, None] + part[:, :, None] * LENGTH + place)
    upper = tl.load(data + at[:, None, None] + 128 + (half * 32 + rest * 16)[:, :, None] + place).to(tl.int32)
    shift = (2 * (odd + 2 * PLANE))[:, :, None]
    codes = ((raw >> (4 * PLANE)) & 15).to(tl.int32) | (((upper >> shift) & 3) << 4)
    scale = tl.load(data + at[:, None] + 192 + half * 8 + (odd + 2 * PLANE) * 2 + rest)
    scale = (_lifted(scale ^ 128) - (_LIFT + 128.0)) * tl.load(halves + (at >> 1) + 104).to(tl.float32)[:, None]
    return (_lifted(codes) - (_LIFT + 32.0)) * scale[:, :, None]


@triton.jit
def _q2_k(data, halves, at, PLANE: tl.constexpr, PARTS: tl.constexpr, LENGTH: tl.constexpr):
    """Sixteen bytes of a scale and a minimum, 64 bytes of four codes each, float16 scale and minimum."""
    part = tl.arange(0, PARTS)[None, :]
    raw = tl.load(data + at[:, None, None] + 16 + part[:, :, None] * LENGTH + tl.arange(0, LENGTH)[None, None, :])
    codes = (raw >> (2 * PLANE)) & 3
    both = tl.load(data + at[:, None] + part // 2 * 8 + 2 * PLANE + part % 2)
    scale = (_lifted(both & 15) - _LIFT) * tl.load(halves + (at >> 1) + 40).to(tl.float32)[:, None]
    minimum = (_lifted(both >> 4) - _LIFT) * tl.load(halves + (at >> 1) + 41).to(tl.float32)[:, None]
    return _line(codes, scale, -minimum)


@triton.jit
def _q3_k(data, halves, at, PLANE: tl.constexpr, PARTS: tl.constexpr, LENGTH: tl.constexpr):
    """32 bytes of third bits, 64 of four codes each, twelve of six-bit scales, a float16 scale."""
    part = tl.arange(0, PARTS)[None, :]
    half, rest = part // 2, part % 2
    place = tl.arange(0, LENGTH)[None, None, :]
    raw = tl.load(data + at[:, None, None] + 32 + part[:, :, None] * LENGTH + place)
    third = tl.load(data + at[:, None, None] + (rest * LENGTH)[:, :, None] + place).to(tl.int32)
    bit = (third >> (half * 4 + PLANE)[:, :, None]) & 1
    codes = ((raw >> (2 * PLANE)) & 3).to(tl.int32) | (bit << 2)
    which = half * 8 + 2 * PLANE + rest
    low = tl.load(data + at[:, None] + 96 + which % 8).to(tl.int32)
    high = tl.load(data + at[:, None] + 104 + which % 4).to(tl.int32)
    scale = ((low >> (which // 8 * 4)) & 15) | (((high >> (which // 4 * 2)) & 3) << 4)
    scale = (_lifted(scale) - (_LIFT + 32.0)) * tl.load(halves + (at >> 1) + 54).to(tl.float32)[:, None]
    return (_lifted(codes) - (_LIFT + 4.0)) * scale[:, :, None]


@triton.jit
def _iq4_xs(data, halves, table, at, PLANE: tl.constexpr, PARTS: tl.constexpr, LENGTH: tl.constexpr):
    """A float16 scale, six-bit scales (their upper bits first), 8 x 16 bytes of two places in a table each."""
    part = tl.arange(0, PARTS)[None, :]
    raw = tl.load(data + at[:, None, None] + 8 + part[:, :, None] * LENGTH + tl.arange(0, LENGTH)[None, None, :])
    codes = (raw >> (4 * PLANE)) & 15
    low = tl.load(data + at[:, None] + 4 + part // 2).to(tl.int32)
    high = tl.load(data + at[:, None] + 2 + part // 4).to(tl.int32)
    scale = ((low >> (part % 2 * 4)) & 15) | (((high >> (part % 4 * 2)) & 3) << 4)
    scale = (_lifted(scale) - (_LIFT + 32.0)) * tl.load(halves + (at >> 1)).to(tl.float32)[:, None]
    return tl.load(table + codes.to(tl.int32)) * scale[:, :, None]
