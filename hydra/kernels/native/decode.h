/* One row of a matrix as floats, each number rounded as its format's definition has it: scale * (code - zero), or
   scale * code + minimum, or scale * number of the table. */

#ifndef HYDRA_DECODE_H
#define HYDRA_DECODE_H

#include "codes.h"
#include "scales.h"

/* Codes one behind the other; of a table (not NULL) its codes. */
static void expand_nibbles(const uint8_t *from, int64_t columns, const uint8_t *table, uint8_t *into) {
    int64_t i = 0;
    for (; i + 32 <= columns / 2; i += 32) {
        bytes_t both = load_bytes(from + i), even = low_nibbles(both), odd = high_nibbles(both);
        if (table) even = look_up(table, even), odd = look_up(table, odd);
        store_in_turn(into + 2 * i, even, odd);
    }
    for (; i < columns / 2; i++) {
        uint8_t low = from[i] & 15, high = from[i] >> 4;
        into[2 * i] = table ? table[low] : low;
        into[2 * i + 1] = table ? table[high] : high;
    }
}

#define EXPAND(block)        \
    case block:              \
        for (int64_t super = first; super < end; super += BLOCK_FACTS[block].columns / 32) \
            _Pragma("GCC unroll 8") \
            for (int part = 0; part < BLOCK_FACTS[block].columns / 32; part++) \
                store_bytes(into + 32 * (super + part - first), block_codes(block, from, super + part)); \
        break;

/* Units [first, end) of a row: whole blocks. */
static void expand_blocks(int block, const uint8_t *from, int64_t first, int64_t end, uint8_t *into) {
    switch (block) {
        EXPAND(Q5_0)
        EXPAND(Q5_1)
        EXPAND(Q2_K)
        EXPAND(Q3_K)
        EXPAND(Q4_K)
        EXPAND(Q5_K)
        EXPAND(Q6_K)
        EXPAND(IQ4_XS)
    }
}

/* Columns [here, till), eight at a time: `v` are their codes, `one` is what is left of a group. */
#define NUMBERS(codes_8, number_8, one)                             \
    const floats_t scales = all_floats(s), offsets = all_floats(o); \
    (void)offsets;                                                  \
    int64_t i = here;                                               \
    for (; i + 8 <= till; i += 8) {                                 \
        floats_t v = codes_8;                                       \
        store_floats(out + i, number_8);                            \
    }                                                               \
    for (; i < till; i++) out[i] = one

INLINE float float_of_f8(uint8_t code) {
    return float_of_f16((uint16_t)((code & 0x80u) << 8 | (code & 0x7fu) << 7)) * 256.0f;
}

/* Columns [first, end) of a row, whose scales and offsets were read: whole blocks of 256 columns, or up to the end of
   the row. `buffer` has room for as many bytes. */
static void decode_columns(const matrix_t *m, int64_t row, int64_t first, int64_t end, const float *scale,
                           const float *offset, uint8_t *buffer, float *out) {
    const uint8_t *from = m->codes + row * m->row_bytes, *codes = buffer;
    if (m->form == DENSE) {
        numbers_at(m->codes, m->number, row * m->columns + first, end - first, out);
        return;
    }
    const int64_t group = group_of(m);
    const uint8_t *table = m->form == NIBBLES && m->offset == TABLE ? m->table : NULL;
    if (m->form == NIBBLES) expand_nibbles(from + first / 2, end - first, table, buffer);
    else if (m->form == BLOCKS) expand_blocks(m->block, from, first / 32, end / 32, buffer);
    else codes = from + first;
    const float zero = common_zero(m);
    const int own = zero == 0.0f && m->form != FLOAT8, is_signed = m->form == BYTES && m->offset != ZEROS;
    for (int64_t at = first; at < end;) {
        const int64_t g = at / group, next = (g + 1) * group < end ? (g + 1) * group : end;
        const int64_t here = at - first, till = next - first;
        const float s = scale[g], o = own ? offset[g] : zero;
        if (m->form == FLOAT8) {
            NUMBERS(load_f8(codes + i), mul_floats(mul_floats(v, all_floats(256.0f)), scales), float_of_f8(codes[i]) * s);
        } else if (m->form == NIBBLES && m->offset == FLOAT_TABLE) {
            NUMBERS(look_up_floats(m->float_table, codes + i), mul_floats(v, scales), m->float_table[codes[i]] * s);
        } else if (has_minima(m)) {
            NUMBERS(load_u8(codes + i), add_floats(mul_floats(v, scales), offsets), (float)codes[i] * s + o);
        } else if (is_signed) {
            NUMBERS(load_i8(codes + i), mul_floats(v, scales), (float)(int8_t)codes[i] * s);
        } else {
            NUMBERS(load_u8(codes + i), mul_floats(sub_floats(v, offsets), scales), ((float)codes[i] - o) * s);
        }
        at = next;
    }
}

/* The scales (and, where each group has its own, zeros or minima) of a row, for `decode_columns`. */
static void read_decode_scales(const matrix_t *m, int64_t row, float *scale, float *offset) {
    if (m->form == FLOAT8) numbers_at(m->scales, m->number, row / m->group_rows * m->groups, m->groups, scale);
    else if (m->form != DENSE) read_row_scales(m, row, scale, offset);
}

static void decode_row(const matrix_t *m, int64_t row, float *scale, float *offset, uint8_t *buffer, float *out) {
    read_decode_scales(m, row, scale, offset);
    decode_columns(m, row, 0, m->columns, scale, offset, buffer, out);
}

#endif
