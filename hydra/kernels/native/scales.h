/* The scales and offsets of one row of a matrix as floats, whatever they are stored as: the only place, beside
   `codes.h`, that knows what bytes of a format mean.

   `read_row_scales` gives for each group of a row its scale and, where each has its own, its zero (a code) or minimum (a
   number); for blocks of GGUF a group is 16 or 32 columns, as the block has it. */

#ifndef HYDRA_SCALES_H
#define HYDRA_SCALES_H

#include "matrix.h"

/* What a form's block is: its columns, bytes, the columns of a group, the code that is nought, or a minimum. */
typedef struct {
    int columns, bytes, group, middle, has_minima;
} block_facts_t;

static const block_facts_t BLOCK_FACTS[] = {
    [Q5_0] = {32, 22, 32, 16, 0},   [Q5_1] = {32, 24, 32, 0, 1},   [Q2_K] = {256, 84, 16, 0, 1},
    [Q3_K] = {256, 110, 16, 4, 0},  [Q4_K] = {256, 144, 32, 0, 1}, [Q5_K] = {256, 176, 32, 0, 1},
    [Q6_K] = {256, 210, 16, 32, 0}, [IQ4_XS] = {256, 136, 32, 128, 0},
};

/* Eight scales and eight minima of 6 bits in 12 bytes. */
INLINE void unpack_6_bits(const uint8_t *from, uint8_t scales[16]) {
    const uint32_t sixes = 0x3f3f3f3fu, fours = 0x0f0f0f0fu, twos = 0x03030303u;
    uint32_t a = u32_at(from), b = u32_at(from + 4), c = u32_at(from + 8), words[4];
    words[0] = a & sixes;
    words[1] = (c & fours) | ((a >> 6) & twos) << 4;
    words[2] = b & sixes;
    words[3] = ((c >> 4) & fours) | ((b >> 6) & twos) << 4;
    memcpy(scales, words, 16);
}

/* Sixteen scales of 6 bits in 12 bytes, and 32 in each. */
INLINE void unpack_q3_scales(const uint8_t *from, uint8_t scales[16]) {
    const uint32_t fours = 0x0f0f0f0fu, twos = 0x03030303u;
    uint32_t a = u32_at(from), b = u32_at(from + 4), c = u32_at(from + 8), words[4];
    words[0] = (a & fours) | (c & twos) << 4;
    words[1] = (b & fours) | ((c >> 2) & twos) << 4;
    words[2] = ((a >> 4) & fours) | ((c >> 4) & twos) << 4;
    words[3] = ((b >> 4) & fours) | ((c >> 6) & twos) << 4;
    memcpy(scales, words, 16);
}

static void read_block_scales(int block, const uint8_t *row, int64_t blocks, float *scale, float *offset) {
    const int bytes = BLOCK_FACTS[block].bytes;
    for (int64_t b = 0; b < blocks; b++, row += bytes) {
        switch (block) {
        case Q5_0:
            scale[b] = float_of_f16(u16_at(row));
            break;
        case Q5_1:
            scale[b] = float_of_f16(u16_at(row)), offset[b] = float_of_f16(u16_at(row + 2));
            break;
        case Q2_K: {
            floats_t d = all_floats(float_of_f16(u16_at(row + 80))), m = all_floats(-float_of_f16(u16_at(row + 82)));
            uint8_t low[16], high[16];
            for (int i = 0; i < 16; i++) low[i] = row[i] & 15, high[i] = row[i] >> 4;
            for (int i = 0; i < 16; i += 8) {
                store_floats(scale + 16 * b + i, mul_floats(d, load_u8(low + i)));
                store_floats(offset + 16 * b + i, mul_floats(m, load_u8(high + i)));
            }
            break;
        }
        case Q3_K: {
            uint8_t own[16];
            unpack_q3_scales(row + 96, own);
            floats_t d = all_floats(float_of_f16(u16_at(row + 108))), middle = all_floats(32.0f);
            for (int i = 0; i < 16; i += 8)
                store_floats(scale + 16 * b + i, mul_floats(d, sub_floats(load_u8(own + i), middle)));
            break;
        }
        case Q4_K:
        case Q5_K: {
            uint8_t own[16];
            unpack_6_bits(row + 4, own);
            floats_t d = all_floats(float_of_f16(u16_at(row))), m = all_floats(-float_of_f16(u16_at(row + 2)));
            store_floats(scale + 8 * b, mul_floats(d, load_u8(own)));
            store_floats(offset + 8 * b, mul_floats(m, load_u8(own + 8)));
            break;
        }
        case Q6_K: {
            floats_t d = all_floats(float_of_f16(u16_at(row + 208)));
            for (int i = 0; i < 16; i += 8) store_floats(scale + 16 * b + i, mul_floats(d, load_i8(row + 192 + i)));
            break;
        }
        case IQ4_XS: {
            float d = float_of_f16(u16_at(row));
            uint32_t high = u16_at(row + 2);
            for (int i = 0; i < 8; i++) {
                int own = ((row[4 + i / 2] >> 4 * (i % 2)) & 15) | ((high >> 2 * i) & 3) << 4;
                scale[8 * b + i] = d * (float)(own - 32);
            }
            break;
        }
        }
    }
}

/* The code that is nought, where all groups of a matrix have the same one (as a byte, without a sign); 0 where each has
   its own, or a minimum. */
static float common_zero(const matrix_t *m) {
    if (m->form == BLOCKS) return (float)BLOCK_FACTS[m->block].middle;
    if (m->offset == TABLE) return (float)m->table_middle;
    if (m->offset == MIDDLE) return m->form == NIBBLES ? 8.0f : 128.0f;
    return 0.0f;
}

/* Columns of a group, and whether `offset` is a minimum (else a zero). */
INLINE int64_t group_of(const matrix_t *m) {
    return m->form == BLOCKS ? BLOCK_FACTS[m->block].group : m->group_columns;
}
INLINE int has_minima(const matrix_t *m) {
    return m->form == BLOCKS ? BLOCK_FACTS[m->block].has_minima : m->offset == MINIMA;
}

static void read_row_scales(const matrix_t *m, int64_t row, float *scale, float *offset) {
    if (m->form == BLOCKS) {
        const uint8_t *at = m->codes + row * m->row_bytes;
        read_block_scales(m->block, at, m->columns / BLOCK_FACTS[m->block].columns, scale, offset);
        return;
    }
    numbers_at(m->scales, m->number, row * m->groups, m->groups, scale);
    if (m->offset == MINIMA) numbers_at(m->minima, m->number, row * m->groups, m->groups, offset);
    else if (m->offset == ZEROS)
        for (int64_t g = 0; g < m->groups; g++) offset[g] = (float)m->zeros[row * m->groups + g];
    else if (m->offset == TABLE)
        for (int64_t g = 0; g < m->groups; g++) scale[g] *= m->table_unit;
}

/* One scale per group to `per` scales of every `unit` columns, or, where groups are wider, to one of each. */
static const float *spread_scales(const float *scale, int64_t group, int64_t columns, int64_t unit, int per, float *into) {
    int64_t step = unit / per, count = (columns + step - 1) / step;
    if (group == step) return scale;
    if (group == 2 * step) {
        for (int64_t i = 0; 2 * i < count; i++) into[2 * i] = into[2 * i + 1] = scale[i];
    } else if (group == 4 * step) {
        for (int64_t i = 0; 4 * i < count; i++) into[4 * i] = into[4 * i + 1] = into[4 * i + 2] = into[4 * i + 3] = scale[i];
    } else if (group % step == 0) {
        int64_t times = group / step;
        for (int64_t first = 0, at = 0; first < count; first += times, at++) {
            int64_t end = first + times < count ? first + times : count;
            for (int64_t i = first; i < end; i++) into[i] = scale[at];
        }
    } else {
        for (int64_t i = 0; i < count; i++) into[i] = scale[i * step / group];
    }
    return into;
}

#endif
