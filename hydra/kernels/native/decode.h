/* One row of a matrix as floats, each number rounded as its format's definition has it: scale * (code - zero), or
   scale * code + minimum, or scale * number of the table. */

#ifndef HYDRA_DECODE_H
#define HYDRA_DECODE_H

#include "codes.h"
#include "scales.h"

static void expand_nibbles(const uint8_t *from, int64_t columns, uint8_t *into) {
    for (int64_t i = 0; i < columns / 2; i++) {
        into[2 * i] = from[i] & 15;
        into[2 * i + 1] = from[i] >> 4;
    }
}

#define EXPAND(block)        \
    case block:              \
        for (int64_t super = 0; super < units; super += BLOCK_FACTS[block].columns / 32) \
            for (int part = 0; part < BLOCK_FACTS[block].columns / 32; part++) \
                store_bytes(into + 32 * (super + part), block_codes(block, from, super + part)); \
        break;

static void expand_blocks(int block, const uint8_t *from, int64_t units, uint8_t *into) {
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

static void decode_float8(const matrix_t *m, int64_t row, float *scale, float *out) {
    const uint8_t *codes = m->codes + row * m->row_bytes;
    numbers_at(m->scales, m->number, row / m->group_rows * m->groups, m->groups, scale);
    for (int64_t first = 0, g = 0; first < m->columns; first += m->group_columns, g++) {
        int64_t end = first + m->group_columns < m->columns ? first + m->group_columns : m->columns, i = first;
        floats_t own = all_floats(scale[g]), wide = all_floats(256.0f);
        for (; i + 8 <= end; i += 8) store_floats(out + i, mul_floats(mul_floats(load_f8(codes + i), wide), own));
        for (; i < end; i++) {
            uint16_t bits = (uint16_t)((codes[i] & 0x80u) << 8 | (codes[i] & 0x7fu) << 7);
            out[i] = float_of_f16(bits) * 256.0f * scale[g];
        }
    }
}

static void decode_row(const matrix_t *m, int64_t row, float *scale, float *offset, uint8_t *buffer, float *out) {
    const uint8_t *from = m->codes + row * m->row_bytes, *codes = buffer;
    if (m->form == DENSE) {
        numbers_at(m->codes, m->number, row * m->columns, m->columns, out);
        return;
    }
    if (m->form == FLOAT8) {
        decode_float8(m, row, scale, out);
        return;
    }
    const int64_t group = group_of(m);
    read_row_scales(m, row, scale, offset);
    if (m->form == NIBBLES) expand_nibbles(from, m->columns, buffer);
    else if (m->form == BLOCKS) expand_blocks(m->block, from, m->columns / 32, buffer);
    else codes = from;
    const float zero = common_zero(m);
    const int own = zero == 0.0f, minima = has_minima(m), is_signed = m->form == BYTES && m->offset != ZEROS;
    for (int64_t first = 0, g = 0; first < m->columns; first += group, g++) {
        const int64_t end = first + group < m->columns ? first + group : m->columns;
        const float s = scale[g], o = own ? offset[g] : zero;
        if (m->offset == FLOAT_TABLE && m->form == NIBBLES)
            for (int64_t i = first; i < end; i++) out[i] = m->float_table[codes[i] & 15] * s;
        else if (m->offset == TABLE && m->form == NIBBLES)
            for (int64_t i = first; i < end; i++) out[i] = ((float)m->table[codes[i] & 15] - o) * s;
        else if (minima)
            for (int64_t i = first; i < end; i++) out[i] = (float)codes[i] * s + o;
        else if (is_signed)
            for (int64_t i = first; i < end; i++) out[i] = (float)(int8_t)codes[i] * s;
        else
            for (int64_t i = first; i < end; i++) out[i] = ((float)codes[i] - o) * s;
    }
}

#endif
