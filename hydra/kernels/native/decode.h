/* One row of a matrix as floats, each number rounded as its format's definition has it: scale * (code - zero), or
   scale * code + minimum, or scale * number of the table. */

#ifndef HYDRA_DECODE_H
#define HYDRA_DECODE_H

#include "codes.h"
#include "scales.h"

/* Codes one behind the other, less `middle`; of a table (not NULL) its codes. */
static void expand_nibbles(const uint8_t *from, int64_t columns, const uint8_t *table, uint8_t middle, uint8_t *into) {
    int64_t i = 0;
    for (; i + 32 <= columns / 2; i += 32) {
        bytes_t both = load_bytes(from + i), even = low_nibbles(both), odd = high_nibbles(both);
        if (table) even = look_up(table, even), odd = look_up(table, odd);
        store_in_turn(into + 2 * i, less_bytes(even, middle), less_bytes(odd, middle));
    }
    for (; i < columns / 2; i++) {
        uint8_t low = from[i] & 15, high = from[i] >> 4;
        into[2 * i] = (uint8_t)((table ? table[low] : low) - middle);
        into[2 * i + 1] = (uint8_t)((table ? table[high] : high) - middle);
    }
}

#define EXPAND(block)                                                                                           \
    case block:                                                                                                 \
        for (; columns > 0; columns -= BLOCK_FACTS[block].columns, from += BLOCK_FACTS[block].bytes)            \
            _Pragma("GCC unroll 8") \
            for (int part = 0; part < BLOCK_FACTS[block].columns / 32; part++, into += 32)                      \
                store_bytes(into, less_bytes(block_codes(block, from, part), BLOCK_FACTS[block].middle));       \
        break;

/* Whole blocks from `from` on; less the code that is nought, where all blocks have the same. */
static void expand_blocks(int block, const uint8_t *from, int64_t columns, uint8_t *into) {
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

/* How a number comes of a code: code * scale, of codes with a sign; (code - offset) * scale; code * scale + offset;
   number of a table * scale; float8 * scale. */
enum rule { SIGNED_CODES, LESS_OFFSET, PLUS_OFFSET, NUMBER_OF_TABLE, FLOAT8_CODES };

INLINE floats_t numbers_8(const uint8_t *codes, floats_t scale, floats_t offset, const int rule) {
    switch (rule) {
    case SIGNED_CODES: return mul_floats(load_i8(codes), scale);
    case LESS_OFFSET: return mul_floats(sub_floats(load_u8(codes), offset), scale);
    case PLUS_OFFSET: return add_floats(mul_floats(load_u8(codes), scale), offset);
    default: return mul_floats(load_f8(codes), scale);
    }
}

INLINE float float_of_f8(uint8_t code) {
    return float_of_f16((uint16_t)((code & 0x80u) << 8 | (code & 0x7fu) << 7)) * 256.0f;
}

INLINE float float_of_table(const uint8_t table[4][16], uint8_t code) {
    const uint8_t *at = table[0] + code;
    return float_of_bits(at[0] | (uint32_t)at[16] << 8 | (uint32_t)at[32] << 16 | (uint32_t)at[48] << 24);
}

INLINE float number_1(const matrix_t *m, uint8_t code, float scale, float offset, const int rule) {
    switch (rule) {
    case SIGNED_CODES: return (float)(int8_t)code * scale;
    case LESS_OFFSET: return ((float)code - offset) * scale;
    case PLUS_OFFSET: return (float)code * scale + offset;
    case NUMBER_OF_TABLE: return float_of_table(m->float_table, code) * scale;
    default: return float_of_f8(code) * scale;
    }
}

/* `groups` groups of `width` columns; `own`: each has its offset, else all have the first. */
INLINE void whole_groups(const matrix_t *m, const uint8_t *codes, int64_t groups, const int64_t width, const float *scale,
                         const float *offset, const int own, const int rule, float *out) {
    const float times = rule == FLOAT8_CODES ? 256.0f : 1.0f; /* see load_f8 */
    for (int64_t g = 0; g < groups; g++, codes += width, out += width) {
        const floats_t s = all_floats(scale[g] * times), o = all_floats(offset[own ? g : 0]);
        int64_t i = 0;
        if (rule == NUMBER_OF_TABLE) {
            for (; i + 32 <= width; i += 32) {
                floats_t numbers[4];
                look_up_floats(m->float_table, load_bytes(codes + i), numbers);
                for (int k = 0; k < 4; k++) store_floats(out + i + 8 * k, mul_floats(numbers[k], s));
            }
        } else {
#pragma GCC unroll 4
            for (; i + 8 <= width; i += 8) store_floats(out + i, numbers_8(codes + i, s, o, rule));
        }
        for (; i < width; i++) out[i] = number_1(m, codes[i], scale[g], offset[own ? g : 0], rule);
    }
}

/* Columns [first, end): groups of 16 or 32 columns all at once, others (and what is left of one) one by one. */
INLINE void columns_by_rule(const matrix_t *m, const uint8_t *codes, int64_t first, int64_t end, const float *scale,
                            const float *offset, const int own, const int rule, float *out) {
    const int64_t group = group_of(m);
    for (int64_t at = first, next; at < end; codes += next - at, out += next - at, at = next) {
        const int64_t g = at / group, groups = at % group == 0 ? (end - at) / group : 0;
        const float *s = scale + g, *o = offset + (own ? g : 0);
        next = at + groups * group;
        if (groups && group == 32) whole_groups(m, codes, groups, 32, s, o, own, rule, out);
        else if (groups && group == 16) whole_groups(m, codes, groups, 16, s, o, own, rule, out);
        else {
            next = (g + 1) * group < end ? (g + 1) * group : end;
            whole_groups(m, codes, 1, next - at, s, o, own, rule, out);
        }
    }
}

/* Whether codes of 4 bits, less the one that is nought, are signed bytes. */
static int becomes_signed(const matrix_t *m) {
    if (m->offset == MIDDLE) return 1;
    for (int i = 0; i < 16 && m->offset == TABLE; i++)
        if (m->table[i] - m->table_middle > 127 || m->table[i] - m->table_middle < -128) return 0;
    return m->offset == TABLE;
}

/* Columns [first, end) of a row, whose scales and offsets were read: whole blocks of 256 columns, or up to the end of
   the row. `buffer` has room for as many bytes. */
static void decode_columns(const matrix_t *m, int64_t row, int64_t first, int64_t end, const float *scale,
                           const float *offset, uint8_t *buffer, float *out) {
    const uint8_t *from = m->codes + row * m->row_bytes, *codes = buffer;
    const block_facts_t *facts = &BLOCK_FACTS[m->block]; /* of blocks */
    if (m->form == DENSE) {
        numbers_at(m->codes, m->number, row * m->columns + first, end - first, out);
        return;
    }
    const uint8_t *table = m->form == NIBBLES && m->offset == TABLE ? m->table : NULL;
    const float zero = common_zero(m);
    const uint8_t middle = m->form == NIBBLES && becomes_signed(m) ? (uint8_t)zero : 0;
    if (m->form == NIBBLES) expand_nibbles(from + first / 2, end - first, table, middle, buffer);
    else if (m->form == BLOCKS) expand_blocks(m->block, from + first / facts->columns * facts->bytes, end - first, buffer);
    else codes = from + first;
#define BY_RULE(offset, own, rule) columns_by_rule(m, codes, first, end, scale, offset, own, rule, out)
    if (m->form == FLOAT8) BY_RULE(&zero, 0, FLOAT8_CODES);
    else if (m->form == NIBBLES && m->offset == FLOAT_TABLE) BY_RULE(&zero, 0, NUMBER_OF_TABLE);
    else if (has_minima(m)) BY_RULE(offset, 1, PLUS_OFFSET);
    else if (middle || m->form == BLOCKS || (m->form == BYTES && m->offset != ZEROS)) BY_RULE(&zero, 0, SIGNED_CODES);
    else if (zero != 0.0f) BY_RULE(&zero, 0, LESS_OFFSET);
    else BY_RULE(offset, 1, LESS_OFFSET);
#undef BY_RULE
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
